"""A page in headless Chromium: what it says on the console, its DOM after loading, screenshots.

python tests/browser.py results/compare.html FOLDER     # light.png, dark.png, phone.png
"""

import html
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
PHONE = 360


def find() -> str | None:
    """Path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def could_be_installed() -> bool:
    """Whether apt-get knows the package and may install it."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return False
    simulate = ["apt-get", "install", "--simulate", "--no-install-recommends", "chromium"]
    return subprocess.run(simulate, capture_output=True).returncode == 0


def run(page: str | Path, *flags: str) -> tuple[str, list[str]]:
    """(stdout, lines of the page's console)."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            [find(), *FLAGS, f"--user-data-dir={profile}", *flags, Path(page).resolve().as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def framed(content: str, width: int, height: int, script: str = "") -> str:
    """A page that shows another one at a width, narrower than a window may be."""
    return (
        f'<!doctype html><body style="margin:0"><iframe id="page" srcdoc="{html.escape(content)}" '
        f'style="border:0;width:{width}px;height:{height}px"></iframe><script>{script}</script>'
    )


def screenshots(page: Path, folder: Path) -> list[Path]:
    """light.png and dark.png as on a desktop, phone.png 360 pixels wide."""
    phone = folder / "phone.html"
    phone.write_text(framed(page.read_text(), PHONE, 9000))
    made = []
    for name, source, size, flags in (
        ("light", page, "1200,4600", ()),
        ("dark", page, "1200,4600", (DARK,)),
        ("phone", phone, f"{PHONE},9000", ()),
    ):
        made.append(folder / f"{name}.png")
        run(source, f"--window-size={size}", f"--screenshot={made[-1]}", *flags)
    return made


if __name__ == "__main__":
    print(*screenshots(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
