"""The web site of the book: python tools/docs.py [assets|build|browser]

assets    fetches KaTeX and the fonts once (npm's tarballs, checked), into .venv/site-assets
build     writes _docs/ from the notebooks, without network: nbdev's processors, then smalldocs over nbs/_quarto.yml.
          Nothing is executed: the outputs are those kept in the notebooks
browser   prints the path of a Chromium for the tests of the site, and installs one where there is none
"""
import base64
import hashlib
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PAGES = ROOT / "_proc"  # what nbdev's processors leave of the notebooks, and the pages made here
SITE = ROOT / "_docs"
CACHE = ROOT / ".venv" / "site-assets"
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
PACKAGE = CONFIG["DEFAULT"]["lib_name"]
REPOSITORY = f"{CONFIG['DEFAULT']['git_url']}/blob/{CONFIG['DEFAULT']['branch']}"

# npm's tarballs: name, version, the registry's checksum, and which files the site serves
TARBALLS = [
    (
        "katex",
        "0.19.1",
        "sha512-jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==",
        r"LICENSE|dist/(katex\.min\.(js|css)|contrib/auto-render\.min\.js|fonts/.*\.woff2)",
    ),
    (
        "@fontsource-variable/source-serif-4",
        "5.3.1",
        "sha512-4Rtay22SC4lMvw11r/+9kxANB6P3M0X8s1NudBC2v0J1KU2y3DcMoNcT3lBoZ/CqLirzf+StlO6UlJilyrvaUg==",
        r"LICENSE|wght(-italic)?\.css|files/.*-wght-.*\.woff2",
    ),
    (
        "@fontsource-variable/source-sans-3",
        "5.3.1",
        "sha512-u0p5Z/PM2e1uxYOMiodLM6NVzxHwULcB6Oi7QSr2WU/sdoLBFP/BeOZ3YYHeJ6rHsjPZA1nZweZVaV7sf2MAyQ==",
        r"LICENSE|wght(-italic)?\.css|files/.*-wght-.*\.woff2",
    ),
    (
        "@fontsource-variable/source-code-pro",
        "5.3.1",
        "sha512-N0nZDizh8CQ19+AHHA8Ssb1i/aQf4N2lpRl3qZVH4/9f1yNgWzTkBFpc26v+QQr2hm4By4aiv597BCoEg2SDQg==",
        r"LICENSE|wght(-italic)?\.css|files/.*-wght-.*\.woff2",
    ),
]


# ---- what is fetched once


def cached(name, version):
    "The folder of a tarball's files."
    return CACHE / f"{name.rsplit('/', 1)[-1]}-{version}"


def tarball(name, version):
    "The bytes of a package on npm: by npm where it is installed, else from its registry's address."
    if shutil.which("npm"):
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", f"{name}@{version}", "--silent", "--pack-destination", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return next(Path(folder).glob("*.tgz")).read_bytes()
    file = f"{name.rsplit('/', 1)[-1]}-{version}.tgz"
    with urllib.request.urlopen(f"https://registry.npmjs.org/{name}/-/{file}", timeout=60) as answer:
        return answer.read()


def unpack(data, wanted, folder):
    "Write the files of a tarball whose names below package/ match `wanted` into `folder`, all or nothing."
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive = Path(scratch) / "package.tgz"
        archive.write_bytes(data)
        new = Path(scratch) / "new"
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                name = member.name.removeprefix("package/")
                if member.isfile() and ".." not in name and re.fullmatch(wanted, name):
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    (new / name).write_bytes(tar.extractfile(member).read())
        new.rename(folder)


def fetch_assets():
    "KaTeX and the fonts, where they are not in the cache."
    for name, version, checksum, wanted in TARBALLS:
        folder = cached(name, version)
        if folder.is_dir():
            continue
        print(f"fetching {name} {version} from npm's registry, once, into {folder.relative_to(ROOT)}")
        data = tarball(name, version)
        found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
        if found != checksum:
            sys.exit(f"{name} {version}: the checksum is {found}, and {checksum} was expected")
        unpack(data, wanted, folder)


# ---- the notebooks' pages


def text_of(part):
    "A notebook's text, which may be kept as a list of lines."
    return "".join(part) if isinstance(part, list) else part


def directives(source):
    "The lines `#| …` of a code cell, and the rest of it."
    lines = source.split("\n")
    kept = [line for line in lines if line.startswith("#|")]
    return kept, "\n".join(line for line in lines if not line.startswith("#|"))


def for_the_page(source):
    "A code cell's source with those directives alone that say how it looks, in YAML that cannot be misread."
    marks, code = directives(source)
    looks = []
    for mark in marks:
        key, colon, value = mark[2:].strip().partition(":")
        if colon and key in ("echo", "output", "code-fold", "code-summary", "fig-alt"):
            value = value.strip()
            quoted = value if value.startswith('"') or value in ("true", "false", "show") else json.dumps(value)
            looks.append(f"#| {key}: {quoted}")
    return "\n".join([*looks, code.strip("\n")])


def has_picture(cell):
    "Does a code cell show a picture that the page keeps?"
    return any(kind.startswith("image/") for output in cell.get("outputs", []) for kind in output.get("data", {}))


def figures_without_alt(path):
    "The first lines of those code cells of a notebook that draw a figure and do not say what it shows."
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and has_picture(cell):
            marks, code = directives(text_of(cell["source"]))
            if not any(re.match(r"#\|\s*fig-alt:\s*\S", mark) for mark in marks):
                found.append(code.strip().split("\n")[-1])
    return found


def site_anchor(anchor):
    "JupyterLab's anchor of a heading (its text, with hyphens) as the site writes it: small letters, no marks."
    return re.sub(r"[^\w.-]", "", anchor.lower())


def links_of_the_site(text, notebook):
    "A notebook's links, as the site has them: its own anchors, and other files in the repository."

    def seen(match):
        path, mark, anchor = match[1].partition("#")
        target = (notebook.parent / path).resolve()
        if re.match(r"[a-z]+:", path) or not target.exists():
            return match[0]
        is_page = not path or (target.suffix == ".ipynb" and NBS in target.parents)
        if is_page or target.suffix in (".png", ".svg", ".jpg"):
            return f"]({path}{mark}{site_anchor(anchor)})"
        return f"]({REPOSITORY}/{target.relative_to(ROOT)}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", seen, text)


def numbers_together(text):
    "A table's text in which `1.2 ± 0.3` and `[-0.1, +0.5]` are not cut at the end of a line."
    text = text.replace(" ± ", "\u00a0±\u00a0")
    return re.sub(r"\[([-+−]?[\d.]+), ([-+−]?[\d.]+)\]", "[\\1,\u00a0\\2]", text)


def page_title(title, path):
    "A lesson's title carries its number; that a page is an appendix the sidebar says."
    number = re.match(r"(\d+)_", path.name)
    if path.name == "index.ipynb":  # the library's name, as it is spelt
        return title
    name = title.removeprefix("Appendix: ")
    title = name[0].upper() + name[1:]
    return f"{number[1]} · {title}" if number else title


def prepare_cell(cell, notebook):
    "One cell of a processed notebook, as the page shows it; None where it shows nothing."
    source = text_of(cell["source"])
    if cell["cell_type"] == "markdown":
        return {**cell, "source": links_of_the_site(source, notebook)}
    if cell["cell_type"] == "code":
        if not directives(source)[1].strip():
            return None
        for output in cell["outputs"]:
            data = output.get("data", {})
            for kind in {"text/markdown", "text/html"} & data.keys():
                data[kind] = numbers_together(links_of_the_site(text_of(data[kind]), notebook))
        return {**cell, "source": folded(cell) + for_the_page(source)}
    return cell


def folded(cell):
    "The directive that folds a cell which JupyterLab folds, if it has none of its own."
    is_hidden = cell.get("metadata", {}).get("jupyter", {}).get("source_hidden")
    has_mark = re.search(r"^#\|\s*code-fold", text_of(cell["source"]), re.M)
    return "#| code-fold: true\n" if is_hidden and not has_mark else ""


def prepare_notebook(path):
    "Rewrite a processed notebook as smalldocs wants it."
    import yaml

    notebook = NBS / path.relative_to(PAGES)
    content = json.loads(path.read_text(encoding="utf-8"))
    front, *cells = content["cells"]
    meta = yaml.safe_load(text_of(front["source"]).strip().strip("-"))
    meta = {"title": page_title(meta["title"], path), "description": meta.get("description", "")}
    front["source"] = f"---\n{yaml.safe_dump(meta, allow_unicode=True, width=10**6)}---\n"
    content["cells"] = [front, *filter(None, (prepare_cell(cell, notebook) for cell in cells))]
    path.write_text(json.dumps(content), encoding="utf-8")


# ---- the reference


def lesson_modules():
    "(module, notebook) in the order of the lessons, the appendices last."
    found = []
    for path in sorted(NBS.glob("[0-9]_*/*.ipynb")) + sorted(NBS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join(text_of(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        module = re.search(r"^#\|\s*default_exp\s+([\w.]+)", source, re.M)
        if module:
            found.append((module[1], path))
    return found


def reference_path(module):
    "Where a module's page lies: a folder for each part."
    part, _, name = module.rpartition(".")
    return f"reference/{part or 'appendices'}/{name}.qmd"


def split_arguments(text):
    "The arguments of a signature, cut at the commas that no bracket holds."
    parts = [""]
    depth = 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def wrapped_signature(name, signature):
    "A call's signature on one line, or an argument a line where it is long."
    if len(name + signature) <= 88:
        return name + signature
    inside, _, after = signature[1:].rpartition(")")
    arguments = "".join(f"    {argument},\n" for argument in split_arguments(inside))
    return f"{name}(\n{arguments}){after}"


def docstring_markdown(text, names):
    "A docstring as Markdown: lines `name: …` about the arguments `names` become a list."
    lines = []
    for line in text.split("\n"):
        about = re.match(r"(\w+(?:, \w+)*): ", line)
        if about and set(about[1].split(", ")) <= set(names):
            lines.append(f"- `{about[1]}`: {line[about.end() :]}")
        else:
            lines.append(line)
    return "\n".join(lines)


def entry(symbol, level, module):
    "A function, class or method: its heading, signature and docstring, and a link to its code."
    from smalldocs import api

    name = symbol.__qualname__
    kind = "class " if inspect.isclass(symbol) else ""
    plain = inspect.isclass(symbol) and not api.has_init(symbol)
    signature = "" if plain else api.signature(symbol, module)
    names = [] if plain else inspect.signature(symbol).parameters
    file = Path(module.__file__).resolve().relative_to(ROOT)
    return "\n\n".join(
        [
            f"{'#'.ljust(level, '#')} {name} {{#{name}}}",
            f"```python\n{kind}{wrapped_signature(name, signature)}\n```",
            docstring_markdown(api.doc(symbol), names),
            f"[source]({REPOSITORY}/{file}#L{api.line_of(symbol)}){{.source-link}}",
        ]
    )


def constants(module):
    "The constants that a module shows, each with its value."
    lines = []
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        if not callable(value) and not inspect.ismodule(value):
            shown = repr(value)
            if len(shown) <= 400 and " at 0x" not in shown:
                lines.append(f"{name} = {shown}")
    return "## Constants {#constants}\n\n```python\n" + "\n".join(lines) + "\n```" if lines else ""


def module_page(name, module, notebook, order):
    "A module's page of the reference, and the names that it documents."
    from smalldocs import api

    up = "../../"
    lesson = notebook.relative_to(NBS)
    front = {"title": name, "description": api.summary(module), "order": order}
    parts = [f"The lesson that writes it: [{lesson.stem}]({up}{lesson})."]
    symbols = api.own(module)
    documented = []
    for symbol in symbols:
        methods = api.methods(symbol) if inspect.isclass(symbol) else []
        parts.append(entry(symbol, 2, module))
        parts += [entry(method, 3, module) for method in methods]
        documented += [each.__qualname__ for each in (symbol, *methods)]
    parts.append(constants(module))
    head = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in front.items())
    return f"---\n{head}---\n\n" + "\n\n".join(filter(None, parts)) + "\n", documented


def write_reference():
    "A page for each module, one that lists them, and the index of names that smalldocs links."
    sys.path.insert(0, str(ROOT))
    index = {}
    rows = []
    for order, (name, notebook) in enumerate(lesson_modules()):
        module = importlib.import_module(f"{PACKAGE}.{name}")
        path = reference_path(name)
        text, documented = module_page(name, module, notebook, order)
        (PAGES / path).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / path).write_text(text, encoding="utf-8")
        for symbol in documented:
            index.setdefault(symbol, f"/{path}#{symbol}")
        index[f"{PACKAGE}.{name}"] = f"/{path}"
        rows.append(f"| [{name}]({path.removeprefix('reference/')}) | {inspect.getdoc(module).splitlines()[0]} |")
    (PAGES / "_symbols.json").write_text(json.dumps(index), encoding="utf-8")
    (PAGES / "reference" / "index.qmd").write_text(reference_index(rows), encoding="utf-8")


def reference_index(rows):
    "The reference's first page."
    shown = ", ".join(f"`{name}`" for name in importlib.import_module(PACKAGE).__all__)
    return "\n".join(
        [
            "---\ntitle: Reference\ndescription: What each module defines, from its docstrings.\n---\n",
            f"`import {PACKAGE}` shows {shown}. All else is imported from its module.\n",
            "| module | |\n| --- | --- |",
            *rows,
            "",
        ]
    )


# ---- the site around the pages


def dark_theme():
    "Bootstrap with its dark colours as the only ones."
    import smalldocs

    file = Path(smalldocs.__file__).parent / "assets/vendor/bootstrap/bootstrap.min.css"
    return file.read_text(encoding="utf-8").replace("[data-bs-theme=dark]", ":root")


def copy_beside():
    "What smalldocs needs beside the notebooks."
    for file in (*NBS.glob("*.css"), *NBS.glob("*.svg")):
        shutil.copy(file, PAGES)
    for folder in NBS.rglob("images"):
        shutil.copytree(folder, PAGES / folder.relative_to(NBS), dirs_exist_ok=True)
    (PAGES / "dark.css").write_text(dark_theme(), encoding="utf-8")


def copy_assets():
    "KaTeX, the fonts, and the scripts and data of nbs/, into the site."
    fonts = []
    for name, version, _, _ in TARBALLS:
        short = name.rsplit("/", 1)[-1]
        shutil.copytree(cached(name, version), SITE / "site_libs" / short, dirs_exist_ok=True)
        for sheet in sorted(cached(name, version).glob("wght*.css")):
            fonts.append(sheet.read_text(encoding="utf-8").replace("url(./", f"url(./{short}/"))
    (SITE / "site_libs" / "fonts.css").write_text("\n".join(fonts), encoding="utf-8")
    for file in (*NBS.glob("*.js"), *NBS.glob("*.json")):
        shutil.copy(file, SITE)
    shutil.rmtree(SITE / "site_libs" / "fuse")
    (SITE / ".nojekyll").touch()


def contents_with_formulas(text):
    "The table of contents with the formulas that its headings have."
    headings = re.findall(r'<h[23][^>]*\bdata-anchor-id="([^"]+)"[^>]*>(.*?)</h[23]>', text, re.S)
    for anchor, inside in headings:
        if 'class="math' in inside:
            link = rf'(<a\b[^>]*\bid="toc-{re.escape(anchor)}"[^>]*>).*?</a>'
            text = re.sub(link, lambda found, inside=inside: f"{found[1]}{inside}</a>", text, flags=re.S)
    return text


def finish_page(text, up):
    "A page of smalldocs with its own copies of what would come from other hosts, and with marks for screen readers."
    text = re.sub(r"https://cdn\.jsdelivr\.net/npm/katex@[\d.]+/dist", f"{up}site_libs/katex/dist", text)
    text = text.replace(f'src="{up}site_libs/fuse/fuse.min.js"', f'src="{up}book.js"')
    text = text.replace("<title>", f'<link rel="stylesheet" href="{up}site_libs/fonts.css"><title>', 1)
    text = text.replace(' role="img"></i>', ' aria-hidden="true"></i>')
    text = text.replace('role="navigation" aria-expanded', 'role="button" tabindex="0" aria-expanded')
    if "attentiondrop-explorer" in text and (NBS / "explorer.js").exists():
        text = text.replace("</body>", f'<script src="{up}explorer.js" defer></script></body>')
    return contents_with_formulas(text)


def finish_site():
    "Finish each page; no page may ask another host."
    for path in SITE.rglob("*.html"):
        up = "".join("../" for _ in path.relative_to(SITE).parts[1:])
        path.write_text(finish_page(path.read_text(encoding="utf-8"), up), encoding="utf-8")


def formulas_before_digits():
    """Let smalldocs read a formula that opens a text which ends in a digit.

    Its parser takes the text's last letter for the one before the first, and a dollar after a digit is no formula.
    """
    from smalldocs import markdown

    plugin = markdown.dollarmath_plugin
    markdown.dollarmath_plugin = lambda md, **options: plugin(md, **{**options, "allow_digits": True})


def build():
    "Write the site."
    if sys.version_info < (3, 11):
        sys.exit("smalldocs, which lays the site out, needs Python 3.11 or newer")
    from nbdev.serve import proc_nbs
    from smalldocs.site import build as lay_out

    fetch_assets()
    shutil.rmtree(PAGES, ignore_errors=True)
    proc_nbs(force=True)
    for path in PAGES.rglob("*.ipynb"):
        prepare_notebook(path)
    write_reference()
    copy_beside()
    formulas_before_digits()
    site = lay_out(PAGES)
    copy_assets()
    finish_site()
    for path in sorted(NBS.rglob("*.ipynb")):
        for line in figures_without_alt(path):
            print(f"no fig-alt: {path.relative_to(ROOT)}: {line}")
    if site.warnings:
        sys.exit("\n".join(site.warnings))
    print(f"{len(site.pages)} pages in {SITE.relative_to(ROOT)}/")


# ---- for the tests


def browser():
    "The path of a Chromium: one that the machine has, else playwright's, which is installed if need be."
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if shutil.which(name):
            return shutil.which(name)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    if not Path(path).exists():
        print("no Chromium here: installing playwright's, with the libraries it needs", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "playwright", "install", "--with-deps", "chromium"], check=True)
    return path


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else "build"
    if what == "browser":
        print(browser())
    elif what == "assets":
        fetch_assets()
    else:
        build()
