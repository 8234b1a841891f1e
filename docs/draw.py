"""Draw mermaid's diagrams of the pages for the site: `python docs/draw.py MERMAID_JS`, after a change of one.

GitHub draws them itself. The site must not fetch a program to do so, so their pictures are files, in docs/diagrams.
Each is named after its text (`conf.diagram`): the build fails, and so does a test, if a picture is missing.

MERMAID_JS: `npm install mermaid` puts it at node_modules/mermaid/dist/mermaid.min.js. Needs playwright and chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from conf import DIAGRAM, HERE, diagram
from playwright.sync_api import sync_playwright

DRAW = """async ([source]) => {
    mermaid.initialize({startOnLoad: false, theme: "neutral", htmlLabels: false, flowchart: {htmlLabels: false},
                        fontFamily: "sans-serif", themeVariables: {background: "#ffffff"}});
    return (await mermaid.render("diagram", source)).svg;
}"""


def main() -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(HERE.rglob("*.md"))]
    wanted = {diagram(source): source for text in texts for source in DIAGRAM.findall(text)}
    folder = HERE / "diagrams"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.set_content("<body></body>")
        page.add_script_tag(path=Path(sys.argv[1]))
        for name, source in wanted.items():
            (HERE / name).write_text(page.evaluate(DRAW, [source]) + "\n", encoding="utf-8")
            print(name)
        browser.close()


if __name__ == "__main__":
    main()
