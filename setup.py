"""Package metadata, read from settings.ini (the file nbdev reads too)."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(here / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
url = cfg["git_url"].rstrip("/")
extras = {extra: cfg[f"{extra}_requirements"].split() for extra in ("data", "lora", "eval", "gpu", "dev")}
extras["dev"] += extras["data"] + extras["lora"] + extras["eval"]


def description(text: str) -> str:
    """The README for a reader who has no files beside it: links into the repository, or plain text without a URL."""
    text = re.sub(r"<!--.*?-->\n*", "", text)
    if url:
        text = re.sub(r'src="(?!https?:)', f'src="{url}/raw/{cfg["branch"]}/', text)
        return re.sub(r"\]\((?!https?:|#)", f"]({url}/blob/{cfg['branch']}/", text)
    text = re.sub(r'<img src="(?!https?:)[^>]*>\n*', "", text)
    return re.sub(r"\[([^\]\[]+)\]\((?!https?:|#)[^)\s]+\)", r"\1", text)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=description((here / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=cfg["license"],
    keywords=cfg["keywords"].split(),
    project_urls={"Source": url, "Issues": f"{url}/issues"} if url else {},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["tinyr2", "tinyr2.*"]),
    package_data={"tinyr2": ["tasks/*.json*", "engine/*.cpp"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
