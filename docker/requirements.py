"""Print what pyproject.toml asks for, a requirement a line: the image installs it below the code that changes.

python requirements.py EXTRA...    of the project with these extras
python requirements.py --build     of its build
"""

import sys
import tomllib
from pathlib import Path


def requirements(arguments: list[str]) -> list[str]:
    """The requirements that the arguments name. Raises KeyError for an extra that does not exist."""
    document = tomllib.loads(Path("pyproject.toml").read_text())
    if arguments == ["--build"]:
        return [str(item) for item in document["build-system"]["requires"]]
    project = document["project"]
    extras = project["optional-dependencies"]
    return [str(item) for item in (*project["dependencies"], *(item for name in arguments for item in extras[name]))]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
