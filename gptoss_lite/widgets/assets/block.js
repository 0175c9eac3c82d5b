// The block along the ladder: the parts of each rung, as Python laid them out, and what changed.

const DRAWING = `text { font: 11px system-ui, sans-serif; fill: var(--fg); }
.name { font-size: 12px; font-weight: 650; }
.small { fill: var(--muted); }
.fill { fill: var(--muted); }
.line, .dash { fill: none; stroke: var(--muted); }
.dash { stroke-dasharray: 4 3; }
.box { cursor: pointer; outline: none; }
.box rect { fill: var(--bg); stroke: var(--muted); }
.box[aria-pressed=true] > rect:first-child { fill: var(--soft); stroke: var(--fg); stroke-width: 2; }
.mark > rect:first-child { stroke: var(--accent); stroke-width: 2.5; }
.gone > rect:first-child { stroke-dasharray: 5 4; }
.gone .name, .gone .note { text-decoration: line-through; }
.box .chip { fill: var(--accent); stroke: none; }
.box .chiptext { fill: var(--bg); font-size: 10px; font-weight: 650; }
.box:focus-visible > rect:first-child { stroke: var(--accent); stroke-width: 4; }
@media (prefers-reduced-motion: no-preference) { .mark { animation: come .3s; } }
@keyframes come { from { opacity: 0; } }`;

function render({ model, el }) {
  const [parts, rungs, names, frame] = ["parts", "rungs", "names", "frame"].map((name) => model.get(name));
  const last = rungs.length - 1, [, , width, height] = frame.view;
  const step = () => model.get("step");
  const find = (i, name) => parts[rungs[Math.max(0, i)].parts.find((k) => parts[k].name === name)];
  const gone = (i) => rungs[i].gone.map((k) => parts[k]);
  const news = (i, { name }) =>
    rungs[i].changed.includes(name) ? (find(i - 1, name) ? "changed" : "new") : gone(i).some((p) => p.name === name) ? "gone" : "";
  const inside = (i) => Math.min(last, Math.max(0, i));
  const visit = (i) => ({ step: inside(i), part: rungs[inside(i)].first }); // and look at what the step changes

  const status = () => {
    const i = step(), { name, changes } = rungs[i], key = model.get("part"), part = find(i, key), mark = news(i, { name: key });
    const here = part ? `${part.title === names[key] ? "" : `: ${part.title}`}, ${count(part.parameters)} parameters` : ", not in this model";
    return [`Step ${i} of ${last}, ${name}${changes && `: ${changes}`}. Selected: ${names[key]}${mark && ` (${mark})`}${here}.`];
  };
  const tables = () => [
    { caption: "Steps of the ladder", rows: [["step", "rung", "changes", "parameters", "weights", "chapter", "source"],
      ...rungs.map((r, i) => [i, r.name, r.changes, r.parameters, r.size, r.chapter, r.paper])] },
    { caption: `Parts at step ${step()}`, rows: [["part", "here", "parameters", "in this step"],
      ...rungs[step()].parts.map((k) => parts[k]).map((p) => [names[p.name], [p.title, ...p.notes].join("; "), p.parameters, news(step(), p)])] },
  ];

  const ui = start(model, el, { traits: ["step", "part"], status, tables });
  slider(ui, "step", "Step", 0, last, 1, (v) => `${v}, ${rungs[v].name}`, visit);
  choice(ui, "part", "Part", names);
  ui.controls.append(h("div", {},
    h("button", { type: "button", click: () => ui.set(visit(step() - 1)) }, "Previous step"),
    h("button", { type: "button", click: () => ui.set(visit(step() + 1)) }, "Next step")));

  // --- the drawing ---

  const drawing = s("svg", { viewBox: frame.view, role: "group", keydown: walk });
  const caption = h("figcaption"), about = h("div", { class: "half about", tabindex: 0, role: "group", "aria-label": "The selected part" });
  ui.figures.append(h("figure", { class: "half drawing" }, caption, drawing), about);
  const title = () => `Step ${step()}: ${rungs[step()].name}`;
  ui.plots.push({ spec: { caption: title }, canvas: () => picture(ui, drawing, width, height) });
  const glyph = ([kind, d]) => s("path", { class: kind, d });
  const text = (x, y, words, more = {}) => s("text", { x, y, ...more }, words);
  let boxes = [], drawn;

  function draw() {
    const i = step(), focused = boxes.find((box) => box.node.matches(":focus"));
    boxes = [...rungs[i].parts, ...rungs[i].gone].map((k) => parts[k])
      .flatMap((part) => part.boxes.map((place) => ({ part, place, node: box(part, place, news(i, part)) })))
      .sort((a, b) => a.place[1] - b.place[1] || a.place[0] - b.place[0]);
    drawing.replaceChildren(
      s("style", {}, DRAWING), ...frame.wires.map(glyph),
      ...frame.labels.map(([words, x, y]) => text(x, y, words, { class: "small" })),
      text(...frame.blocks, rungs[i].blocks, { class: "small", "text-anchor": "end" }),
      ...boxes.map(({ node }) => node),
      ...rungs[i].parts.map((k) => s("g", { "pointer-events": "none" }, ...parts[k].glyphs.map(glyph))));
    drawing.setAttribute("aria-label", `${title()}. Up and down walk the parts, left and right the steps`);
    (boxes.find(({ part, place }) => focused?.part.name === part.name && focused.place[1] === place[1]) ?? (focused && boxes[0]))?.node.focus();
  }
  function box(part, [x, y, w, tall, place], mark) {
    const sign = w <= frame.sign, round = sign ? w / 2 : 5, inline = tall < frame.inline, top = y + (inline ? tall / 2 + 4 : 18);
    const node = s("g", {
      class: `box ${mark && "mark"} ${mark}`, role: "button",
      "aria-label": [part.title, ...part.notes, place, mark].filter(Boolean).join(", "),
      click: () => ui.set({ part: part.name }), focus: () => ui.set({ part: part.name }),
    }, s("rect", { x, y, width: w, height: tall, rx: round }));
    if (sign) node.append(text(x + w / 2, top, "+", { class: "name", "text-anchor": "middle" }));
    else if (inline) node.append(text(x + 8, top, s("tspan", { class: "name" }, part.title), { class: "note" }));
    else node.append(text(x + 8, top, part.title, { class: "name" }));
    if (!sign) part.notes.forEach((note, k) =>
      inline ? node.lastChild.append(`  ${note}`) : node.append(text(x + 8, top + 15 * (k + 1), note, { class: "note" })));
    if (mark) {
      const wide = 6.4 * mark.length + 12, left = x + w - wide + (sign ? wide - 4 : 4);
      node.append(s("rect", { class: "chip", x: left, y: y - 7, width: wide, height: 14, rx: 7 }),
        text(left + wide / 2, y + 3.5, mark, { class: "chiptext", "text-anchor": "middle" }));
    }
    return node;
  }
  function walk(event) {
    const { key } = event, by = { ArrowUp: -1, ArrowDown: 1 }[key], turn = { ArrowLeft: -1, ArrowRight: 1 }[key];
    const at = boxes.findIndex(({ node }) => node === event.target.closest("g"));
    if (by) boxes[Math.min(boxes.length - 1, Math.max(0, at + by))].node.focus();
    else if (turn) ui.set({ step: inside(step() + turn) });
    else if (key === "Enter" || key === " ") ui.set({ part: boxes[at].part.name });
    else return;
    event.preventDefault();
  }

  // --- what the selected part is ---

  function explain() {
    const i = step(), name = model.get("part"), part = find(i, name), before = find(i - 1, name);
    const met = range(i + 1).filter((k) => (k ? news(k, { name }) : find(0, name)));
    const said = part?.what ?? (before ? `Taken out in this step. ${before.what}` : "This model has none.");
    const old = i && Object.fromEntries(before?.fields ?? []);
    const value = ([field, now]) => (old && field in old && old[field] !== now ? h("td", {}, h("s", {}, old[field]), ` → `, h("b", {}, now)) : h("td", {}, now));
    about.replaceChildren(
      h("p", { class: "title" }, names[name], part && part.title !== names[name] ? `: ${part.title}` : ""), h("p", {}, said),
      ...(part ? [h("p", {}, `Parameters: ${part.parameters ? count(part.parameters) : "none"}`,
        before && before.parameters !== part.parameters ? `, ${count(before.parameters)} before` : "",
        `. The model: ${count(rungs[i].parameters)}, stored in ${rungs[i].size}.`)] : []),
      ...(met.length ? [h("p", {}, ...met.reverse().flatMap((k, n) => [n ? "; " : "See ", chapter(rungs[k].chapter), `, ${rungs[k].name} (${rungs[k].paper})`]), ".")] : []),
      ...(part ? [h("table", {}, h("caption", {}, "Config fields that drive it"),
        ...part.fields.map((field) => h("tr", {}, h("th", { scope: "row" }, field[0]), value(field))))] : []));
  }
  ui.updates.push(() => {
    if (drawn !== step()) draw();
    drawn = step();
    caption.textContent = title();
    const picked = boxes.filter(({ part }) => part.name === model.get("part"));
    const stop = boxes.find(({ node }) => node.matches(":focus")) ?? picked[0] ?? boxes[0];
    for (const one of boxes) {
      one.node.setAttribute("aria-pressed", picked.includes(one));
      one.node.setAttribute("tabindex", one === stop ? 0 : -1);
    }
    explain();
  });
  return finish(ui, "Read the diagram upwards. The line at the left is the residual stream. Parameters count a part in all blocks together. " +
    "Keys and values are the filled boxes under the queries that share them; masks have queries downwards and keys to the right.");
}

// A link, where the page has one: the book's contents do, a saved file does not.
function chapter(number) {
  const link = [...document.links].find((a) => a.pathname.split("/").pop().startsWith(`${number}_`));
  return link ? h("a", { href: link.href.split("#")[0] }, `chapter ${number}`) : `chapter ${number}`;
}

export default { render };
