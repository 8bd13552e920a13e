"Writes README.md, and the pictures in it, from nbs/index.ipynb and the outputs kept there: python tools/readme.py"
import base64
import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURES = Path("nbs/images")


def output_parts(output, path, alt):
    "Markdown of one output, and the bytes of its picture (to be kept at `path`) if it is one."
    data = output.get("data", {})
    if "image/png" in data:
        return f"![{alt}]({path})", base64.b64decode("".join(data["image/png"]))
    if "text/markdown" in data:
        return links_from_the_root("".join(data["text/markdown"])), None
    text = "".join(output.get("text", data.get("text/plain", "")))
    return "".join(f"    {line}\n" for line in text.splitlines()), None


def links_from_the_root(text):
    "Links of a notebook in nbs/, as seen from the folder above."
    def seen(match):
        link = match[1]
        return f"]({link.removeprefix('../') if link.startswith('../') else 'nbs/' + link})"

    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", seen, text)


def render(notebook=ROOT / "nbs" / "index.ipynb"):
    "The README's text, and its pictures as {path: bytes}."
    parts = []
    pictures = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if re.search(r"^#\|\s*hide", source, re.M):
            continue
        if cell["cell_type"] == "markdown":
            parts.append(links_from_the_root(source))
            continue
        code = "\n".join(line for line in source.splitlines() if not line.startswith("#|")).strip()
        if "#| echo: false" not in source:
            parts.append(f"```python\n{code}\n```")
        alt = re.search(r"^#\|\s*fig-alt:\s*(.+)", source, re.M)
        for output in cell["outputs"]:
            path = PICTURES / f"index-{len(pictures) + 1}.png"
            markdown, picture = output_parts(output, path, alt[1] if alt else "")
            parts.append(markdown)
            if picture:
                pictures[path] = picture
    return "\n\n".join(p.strip("\n") for p in parts if p.strip()) + "\n", pictures


if __name__ == "__main__":
    text, pictures = render()
    for old in (ROOT / PICTURES).glob("index-*.png"):
        old.unlink()
    for path, picture in pictures.items():
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_bytes(picture)
    (ROOT / "README.md").write_text(text)
    print(f"README.md: {len(text.splitlines())} lines, {len(pictures)} pictures")
