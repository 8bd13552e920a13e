"The files of this checkout: what git has, or would add."
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def files(under="", ending=""):
    "Paths below the folder `under` that git tracks or would add, not what is ignored."
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z", under or "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(ROOT / f for f in listed.stdout.split("\0") if f.endswith(ending) and f and (ROOT / f).is_file())
