// What the book's pages do beside smalldocs.js: the search's order, and keys for what can be opened or scrolled.

// smalldocs asks window.Fuse. All words of the question must stand in a section; the best sections come first.
window.Fuse = class {
  constructor(sections) {
    this.sections = sections.map((section) => ({
      section,
      title: section.title.toLowerCase(),
      heading: section.section.toLowerCase(),
      text: section.text.toLowerCase(),
      reference: section.href.startsWith("reference/") ? 1 : 0,
    }));
  }

  static score(entry, question, words) {
    const all = `${entry.title} ${entry.heading} ${entry.text}`;
    if (!words.every((word) => all.includes(word))) return 0;
    const phrase = new RegExp(`(^|[^a-z0-9])${question.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}($|[^a-z0-9])`);
    let score = 1;
    if (phrase.test(entry.title)) score += 80;
    if (phrase.test(entry.heading)) score += 60;
    if (phrase.test(entry.text)) score += 30;
    if (all.includes(question)) score += 10;
    return score + words.filter((word) => entry.heading.includes(word) || entry.title.includes(word)).length * 4
      - entry.reference * 5;
  }

  search(typed, { limit }) {
    const question = typed.toLowerCase().trim();
    const words = question.split(/\s+/);
    return this.sections
      .map((entry) => ({ entry, score: window.Fuse.score(entry, question, words) }))
      .filter((hit) => hit.score > 0)
      .sort((a, b) => b.score - a.score)
      .slice(0, limit)
      .map(({ entry }) => ({ item: { ...entry.section, text: window.Fuse.around(entry, question, words[0]) } }));
  }

  static around(entry, question, word) {
    const place = entry.text.includes(question) ? entry.text.indexOf(question) : entry.text.indexOf(word);
    const start = Math.max(0, place - 70);
    return (start ? "… " : "") + entry.section.text.slice(start, start + 260);
  }
};

document.addEventListener("DOMContentLoaded", () => {
  // what scrolls sideways can be reached by the keyboard
  const boxes = document.querySelectorAll("main pre, .sd-table, .cell-output-display, .math.display");
  const mark = () => boxes.forEach((box) => {
    if (box.scrollWidth > box.clientWidth + 1) {
      box.tabIndex = 0;
    } else {
      box.removeAttribute("tabindex");
    }
  });
  window.addEventListener("load", () => setTimeout(mark, 100));
  window.addEventListener("resize", mark);
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", mark));

  // what opens by a click opens by a key
  document.querySelectorAll('[role="button"][tabindex]').forEach((button) => button.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      button.click();
    }
  }));

  // the sidebar shows where we are
  const sidebar = document.querySelector("#quarto-sidebar");
  const here = sidebar && sidebar.querySelector(".sidebar-link.active");
  if (here) {
    sidebar.scrollTop = here.getBoundingClientRect().top - sidebar.getBoundingClientRect().top - sidebar.clientHeight / 3;
  }
});
