"""A hook of mkdocs: the pages in the order of nbs/order.yaml, links between them, and the figures."""
import re
import shutil
from pathlib import Path

from notebooks import shelves


def on_config(config, **_):
    root = Path(config.config_file_path).parent
    config.nav = ["index.ipynb"] + [{shelf: [path.relative_to(root / "nbs").as_posix() for path in notebooks]}
                                    for shelf, notebooks in shelves(root).items()]
    return config


def on_post_page(output, **_):
    output = re.sub(r'href="([\w./-]+)\.ipynb', r'href="\1.html', output)
    return re.sub(r'="\.\./((?:\.\./)*)figures/', r'="\1figures/', output)  # nbs/ is the top of the site


def on_post_build(config, **_):
    figures = Path(config.config_file_path).parent / "figures"
    if figures.exists():
        shutil.copytree(figures, Path(config.site_dir) / "figures", dirs_exist_ok=True)
