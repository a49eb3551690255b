"""A hook of mkdocs: links between notebooks lead to their pages, and the figures come along."""
import re
import shutil
from pathlib import Path


def on_post_page(output, **_):
    output = re.sub(r'href="([\w.-]+)\.ipynb', r'href="\1.html', output)
    return output.replace('="../figures/', '="figures/')


def on_post_build(config, **_):
    figures = Path(config.config_file_path).parent / "figures"
    if figures.exists():
        shutil.copytree(figures, Path(config.site_dir) / "figures", dirs_exist_ok=True)
