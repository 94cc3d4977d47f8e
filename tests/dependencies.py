"""The libraries that requirements.txt asks for, with licence and size, as a Markdown table:

    python -m tests.dependencies

The licence is what a package says of itself; the size is that of its installed files, without what it needs in turn.
"""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"


def licence(package: Distribution) -> str:
    about = package.metadata
    classified = [
        line.split(" :: ")[-1]
        for line in about.get_all("Classifier", [])
        if line.startswith("License :: OSI")
    ]
    text = (
        about.get("License-Expression")
        or "; ".join(classified)
        or about.get("License")
        or "not said"
    )
    return text.strip().splitlines()[0].split(" AND ")[0]


def megabytes(package: Distribution) -> float:
    paths = {Path(str(package.locate_file(file))) for file in package.files or []}
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def needed(name: str, found: dict[str, Distribution]) -> None:
    """Collect a package and what it needs in turn, without extras."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    try:
        found[key] = distribution(name)
    except PackageNotFoundError:  # optional, or for another system
        return
    for line in found[key].requires or []:
        if "extra ==" not in line:
            needed(re.match(r"[\w.-]+", line)[0], found)


def main() -> None:
    print("| package | licence | MB | for |\n|---|---|---|---|")
    asked, purpose = {}, ""
    for line in REQUIREMENTS.read_text().splitlines():
        if line.startswith("#"):
            purpose = line[2:].rstrip(".").split(":")[0].lower()
        elif line:
            name, _, comment = line.partition("#")
            name = re.match(r"[\w.-]+", name)[0]
            found: dict[str, Distribution] = {}
            needed(name, found)
            asked |= found
            package = next(iter(found.values()), None)
            figures = (
                (licence(package), f"{megabytes(package):,.1f}")
                if package
                else ("not installed here", "")
            )
            print(f"| {name} | {figures[0]} | {figures[1]} | {comment.strip() or purpose} |")
    print(
        f"\nWith all they need in turn: {len(asked)} packages, {sum(map(megabytes, asked.values())) / 1000:,.1f} GB"
    )
    licences = sorted({licence(package) for package in asked.values()})
    print(f"Their licences: {', '.join(licences)}")


if __name__ == "__main__":
    main()
