"""Picture: TensorBoard of some runs, drawn by headless Chromium and saved as a PNG.

    python scripts/picture.py runs docs/tensorboard.png

Starts TensorBoard on a free loopback port, opens its custom-scalars page, waits until the curves
are drawn, takes the picture, and stops TensorBoard again. Needs Debian's chromium and
chromium-driver and the package selenium (dev extra).
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
PAGE = "custom_scalars&_smoothingWeight=0"


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Run a TensorBoard server on loopback; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir", str(logdir)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--load_fast=false"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}/"
            for _ in range(300):
                if server.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(
                        f"TensorBoard ended with {server.returncode}: {log.read().decode()}"
                    )
                try:
                    urllib.request.urlopen(address, timeout=2).read()
                    break
                except OSError:
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()
            server.wait(10)


@contextmanager
def browser(width: int, height: int) -> Iterator[Any]:
    """Start headless Chromium with a profile of its own."""
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        sys.exit(
            "a picture needs selenium, which comes with the dev extra: bash scripts/setup.sh dev"
        )

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
            f"--window-size={width},{height}", f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        # The window's size includes its frame; the page is to have this size.
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        try:
            yield driver
        finally:
            driver.quit()


COUNT_CURVES = """
let curves = 0;
const walk = (node) => {
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.children || []) walk(child);
  if (node.tagName === 'path' && node.closest('.render-area, .plot') &&
      (node.getAttribute('d') || '').split('L').length > 2) curves += 1;
};
walk(document.documentElement);
return curves;
"""
"""Counts drawn curves: SVG paths of several points inside the plot area of a chart, in whatever
shadow root they lie; icons are not.
"""


def draw(
    address: str,
    out: Path,
    *,
    page: str = PAGE,
    width: int = 1600,
    height: int = 1000,
    seconds: float = 60.0,
) -> int:
    """Save a picture of one page of TensorBoard.

    Returns:
        How many curves were drawn.
    """
    with browser(width, height) as driver:
        driver.get(f"{address}#{page}")
        end, curves, before = time.time() + seconds, 0, -1
        while time.time() < end and not (curves and curves == before):
            before = curves
            time.sleep(2.0)
            curves = int(driver.execute_script(COUNT_CURVES))
        out.parent.mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(out))
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="a folder of runs, or one run")
    parser.add_argument("out", type=Path, help="the PNG")
    parser.add_argument(
        "--page",
        default=PAGE,
        help="timeseries, scalars, custom_scalars, images, text or hparams",
    )
    parser.add_argument("--width", type=int, default=1600, help="of the page, in pixels")
    parser.add_argument("--height", type=int, default=1000)
    options = parser.parse_args()
    with tensorboard(options.runs) as address:
        curves = draw(
            address, options.out, page=options.page, width=options.width, height=options.height
        )
    print(f"{options.out}: {curves} curves")
    if not curves:
        sys.exit("no curve was drawn")


if __name__ == "__main__":
    main()
