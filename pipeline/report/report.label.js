"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const items = data.items, place = document.getElementById("item"), message = document.getElementById("message");
  const buttons = [...document.querySelectorAll(".choices button")];
  const values = buttons.map((button) => button.dataset.value);
  const name = (item) => `${item.kind}:${item.id}:${item.shown}`;
  const store = `mbeir-cot labels ${data.config_sha256}`;
  let labels = new Map(), at = 0;

  // What was labelled before, in this browser. A browser may keep nothing for local files: the page works without.
  function keep() {
    try { localStorage.setItem(store, JSON.stringify([...labels])); } catch { /* saving to the file remains */ }
  }
  try { adopt(JSON.parse(localStorage.getItem(store) ?? "[]")); } catch { /* nothing usable */ }

  function adopt(pairs) {
    const known = new Set(items.map(name));
    let taken = 0;
    for (const [key, value] of pairs)
      if (known.has(key) && values.includes(value)) { labels.set(key, value); taken += 1; }
    return taken;
  }

  // All texts go in as text, never as markup.
  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    if (className) made.className = className;
    return made;
  }
  function side(title, text, picture, alt) {
    const made = element("div", "", "side");
    made.append(element("h3", title));
    if (picture && data.pictures[picture]) {
      const image = element("img");
      image.src = data.pictures[picture];
      image.alt = alt;
      made.append(image);
    }
    if (text) made.append(element("p", text));
    return made;
  }

  function draw() {
    const item = items[at];
    place.replaceChildren();
    const head = element("div", "", "head");
    head.append(element("span", `${at + 1} of ${items.length}`, "badge"), element("span", item.kind, "tag"), element("span", item.id, "id"));
    const body = element("div", "", item.kind === "verdict" ? "body" : "body alone");
    const query = side("query", "", item.picture, "the query's image");
    query.append(element("p", item.text || "(no text)", "query-text"), element("p", item.instruction, "instruction"));
    body.append(query);
    if (item.kind === "verdict") {
      const middle = element("div", "", "middle");
      middle.append(element("h3", "reasoning"));
      const facets = element("dl");
      for (const [label, text] of item.facets) facets.append(element("dt", label), element("dd", text));
      middle.append(facets, element("h3", "answer to judge"), element("p", item.answer, "strong"));
      body.append(middle, side("right result", item.positive_text || (item.positive_picture ? "" : "(not found)"), item.positive_picture, "the right result's image"));
    }
    const question = element("h2", data.questions[item.kind]);
    question.id = "question";
    place.append(head, question, element("p", data.hints[item.kind], "hint"), body);
    const value = labels.get(name(item));
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
    document.getElementById("bar").value = labels.size;
    document.getElementById("done").textContent = `${labels.size} of ${items.length} labelled`;
  }
  function go(to) {
    at = Math.min(items.length - 1, Math.max(0, to));
    message.textContent = "";
    draw();
    place.focus({ preventScroll: true });
  }
  function firstOpen(from) {
    for (let step = 0; step < items.length; step += 1) {
      const i = (from + step) % items.length;
      if (!labels.has(name(items[i]))) return i;
    }
    return -1;
  }
  function choose(value) {
    labels.set(name(items[at]), value);
    keep();
    const next = firstOpen(at + 1);
    if (next >= 0) return go(next);
    draw();
    message.textContent = "All are labelled: save them (S).";
  }
  function forget() {
    labels.delete(name(items[at]));
    keep();
    draw();
  }
  function save() {
    const found = items.filter((item) => labels.has(name(item)));
    const file = {
      version: 1, dataset: data.dataset, config_sha256: data.config_sha256,
      labels: found.map((item) => ({ kind: item.kind, id: item.id, shown: item.shown, value: labels.get(name(item)) })),
    };
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1) + "\n"], { type: "application/json" }));
    link.download = "labels.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    message.textContent = `Saved ${found.length} labels to labels.json.`;
  }
  document.getElementById("open").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    let said;
    try {
      const found = JSON.parse(await file.text());
      said = `${adopt(found.labels.map((one) => [`${one.kind}:${one.id}:${one.shown}`, one.value]))} of ${found.labels.length} labels taken from the file.`;
      keep();
    } catch { said = "That file holds no labels."; }
    go(Math.max(0, firstOpen(0)));
    message.textContent = said;
  });

  for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.value));
  document.getElementById("save").addEventListener("click", save);
  document.getElementById("back").addEventListener("click", () => go(at - 1));
  document.getElementById("next").addEventListener("click", () => go(at + 1));
  document.getElementById("open-next").addEventListener("click", () => go(Math.max(0, firstOpen(0))));
  const keys = {
    y: () => choose("yes"), 1: () => choose("yes"), n: () => choose("no"), 2: () => choose("no"), u: () => choose("unsure"),
    3: () => choose("unsure"), j: () => go(at + 1), arrowright: () => go(at + 1), k: () => go(at - 1), arrowleft: () => go(at - 1),
    f: () => go(Math.max(0, firstOpen(0))), x: forget, s: save,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input")) return;
    const action = keys[event.key.toLowerCase()];
    if (action) { event.preventDefault(); action(); }
  });
  go(Math.max(0, firstOpen(0)));
})();
