"""Print the libraries in requirements.txt, with licence and size, as a Markdown table.

    python -m tests.dependencies

The licence is what a package says about itself. The size is that of its installed files, without
the packages that it needs.
"""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"


def licence(package: Distribution) -> str:
    metadata = package.metadata
    classifiers = [
        line.split(" :: ")[-1]
        for line in metadata.get_all("Classifier", [])
        if line.startswith("License :: OSI")
    ]
    expression = metadata.get("License-Expression") or "; ".join(classifiers)
    text = expression or metadata.get("License") or "unknown"
    return text.strip().splitlines()[0].split(" AND ")[0]


def megabytes(package: Distribution) -> float:
    paths = {Path(str(package.locate_file(file))) for file in package.files or []}
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def collect(name: str, found: dict[str, Distribution]) -> None:
    """Add a package, and the packages it needs without extras, to `found`."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    try:
        found[key] = distribution(name)
    except PackageNotFoundError:  # optional, or for another system
        return
    for line in found[key].requires or []:
        if "extra ==" not in line:
            collect(re.match(r"[\w.-]+", line)[0], found)


def main() -> None:
    print("| package | licence | MB | for |\n|---|---|---|---|")
    packages: dict[str, Distribution] = {}
    purpose = ""
    for line in REQUIREMENTS.read_text().splitlines():
        if line.startswith("#"):
            purpose = line[2:].rstrip(".").split(":")[0].lower()
        elif line:
            requirement, _, comment = line.partition("#")
            name = re.match(r"[\w.-]+", requirement)[0]
            found: dict[str, Distribution] = {}
            collect(name, found)
            packages |= found
            figures = "not installed here | "
            if found:
                package = next(iter(found.values()))
                figures = f"{licence(package)} | {megabytes(package):,.1f}"
            print(f"| {name} | {figures} | {comment.strip() or purpose} |")
    gigabytes = sum(map(megabytes, packages.values())) / 1000
    print(f"\nWith all that they need: {len(packages)} packages, {gigabytes:,.1f} GB")
    licences = sorted({licence(package) for package in packages.values()})
    print(f"Their licences: {', '.join(licences)}")


if __name__ == "__main__":
    main()
