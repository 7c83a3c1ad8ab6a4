"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const charts = read("charts-data"), examples = read("examples-data"), pictures = read("pictures-data");
  const root = document.documentElement;

  // Light or dark: the system's choice until somebody presses the button.
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  function draw() {
    const small = innerWidth < 760;
    charts.forEach((chart, i) => {
      const layout = structuredClone(chart.layout);
      Object.assign(layout, {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
        font: { family: "system-ui, sans-serif", size: small ? 11 : 12.5, color: colour("--ink") },
        hoverlabel: { bgcolor: colour("--sheet"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      });
      for (const axis of Object.keys(layout).filter((key) => /^[xy]axis/.test(key)))
        Object.assign(layout[axis], { gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line") });
      Plotly.react(`plot-${i}`, structuredClone(chart.data), layout, { displayModeBar: false, responsive: true });
    });
  }
  function paint() {
    root.dataset.theme = (chosen ?? (system.matches ? "dark" : "light"));
    draw();
  }
  document.getElementById("theme").addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    paint();
  });
  system.addEventListener("change", paint);
  paint();
  if (!examples.length) return;

  // Filters. Choices of each are the values among the examples, commonest first.
  const selects = [...document.querySelectorAll("select[data-filter]")];
  for (const select of selects) {
    const counts = new Map();
    for (const example of examples) {
      const value = example.tags[select.dataset.filter];
      if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
    }
    for (const [value, count] of [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])))
      select.append(new Option(`${value} (${count})`, value));
  }
  const search = document.getElementById("search"), place = document.getElementById("examples");
  const more = document.getElementById("more"), count = document.getElementById("count");
  const STEP = 20;
  let found = [], shown = 0;

  const words = (e) => [e.id, e.instruction, e.text, e.strong, e.positive_text, ...e.lines.map((l) => l[1])].join(" ").toLowerCase();
  const haystacks = examples.map(words);

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (className) made.className = className;
    return made;
  }
  function picture(key, alt) {
    const image = element("img");
    image.src = pictures[key];
    image.alt = alt;
    image.loading = "lazy";
    return image;
  }
  function side(title, key, text, instruction) {
    const made = element("div", "", "side");
    made.append(element("h3", title));
    if (key && pictures[key]) made.append(picture(key, `${title} image`));
    if (text) made.append(element("p", text));
    if (instruction) made.append(element("p", instruction, "instruction"));
    return made;
  }
  function card(example) {
    const made = element("article", "", "example");
    made.tabIndex = -1;
    const head = element("div", "", "head");
    head.append(element("span", example.id, "id"));
    for (const [name, value] of Object.entries(example.tags)) {
      if (!value) continue;
      const tag = element("span", value, "tag");
      tag.title = name;
      if (/reject|^loss|: /.test(value)) tag.classList.add("bad");
      if (/^win/.test(value)) tag.classList.add("good");
      head.append(tag);
    }
    for (const badge of example.badges) head.append(element("span", badge, "badge"));
    const body = element("div", "", "body"), middle = element("div", "", "middle"), list = element("dl");
    for (const [label, text] of example.lines) list.append(element("dt", label), element("dd", text));
    if (example.lines.length || example.strong) middle.append(element("h3", "trace"));
    middle.append(list);
    if (example.strong) middle.append(element("p", example.strong, "strong"));
    if (example.small) middle.append(element("p", example.small, "small"));
    if (example.exchanges.length) {
      const raw = element("details");
      raw.append(element("summary", "prompts and raw answers"));
      for (const exchange of example.exchanges)
        raw.append(element("h3", exchange.title), element("pre", exchange.prompt), element("pre", exchange.answer));
      middle.append(raw);
    }
    body.append(side("query", example.picture, example.text, example.instruction), middle);
    if (example.positive_text || example.positive_picture)
      body.append(side(example.positive_name, example.positive_picture, example.positive_text, ""));
    made.append(head, body);
    return made;
  }
  function extend() {
    const part = document.createDocumentFragment();
    for (const i of found.slice(shown, shown + STEP)) part.append(card(examples[i]));
    place.append(part);
    shown = Math.min(found.length, shown + STEP);
    more.hidden = shown >= found.length;
    count.textContent = found.length ? `${shown} of ${found.length} shown` : "none fits: widen the filters";
  }
  function filter() {
    const wanted = selects.map((select) => [select.dataset.filter, select.value]).filter(([, value]) => value);
    const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = [...examples.keys()].filter(
      (i) => wanted.every(([name, value]) => examples[i].tags[name] === value) && terms.every((term) => haystacks[i].includes(term)),
    );
    place.replaceChildren();
    shown = 0;
    extend();
  }
  selects.forEach((select) => select.addEventListener("change", filter));
  search.addEventListener("input", filter);
  more.addEventListener("click", extend);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const cards = [...place.children], at = cards.indexOf(document.activeElement.closest?.(".example"));
    if (event.key === "/") { event.preventDefault(); search.focus(); }
    else if (event.key === "j") { if (at + 1 >= cards.length) extend(); place.children[Math.min(at + 1, place.children.length - 1)]?.focus(); }
    else if (event.key === "k") cards[Math.max(at - 1, 0)]?.focus();
    else if (event.key === "o" && at >= 0) { const raw = cards[at].querySelector("details"); if (raw) raw.open = !raw.open; }
  });
  filter();
})();
