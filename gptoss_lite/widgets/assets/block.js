// The block along the ladder: the parts of each rung, as Python laid them out, and what changed.
// Beside it, where asked for, the block of another model.

function render({ model, el }) {
  const ui = start(model, el), { now } = ui, { parts, rungs, others, names, frame } = now, last = rungs.length - 1;
  const rung = () => rungs[now.step], other = () => others[now.beside];
  const partsOf = (model) => model?.parts.map((k) => parts[k]) ?? [];
  const find = (model, name) => partsOf(model).find((part) => part.name === name);
  const gone = (i) => rungs[i].gone.map((k) => parts[k]);
  const news = (i, name) => // since the rung before
    rungs[i].changed.includes(name) ? (find(rungs[i - 1], name) ? "changed" : "new") : gone(i).some((part) => part.name === name) ? "gone" : "";
  const both = () => [...new Set([...partsOf(rung()), ...partsOf(other())].map(({ name }) => name))];
  const mark = (name) => (other() ? difference(find(rung(), name), find(other(), name)) : news(now.step, name));
  const visit = (i) => ({ step: clamp(i, 0, last), part: rungs[clamp(i, 0, last)].first }); // and look at what the step changes

  slider(ui, "step", "Step", last, (v) => `${v}, ${rungs[v].name}`, { changes: visit });
  choice(ui, "part", "Part", names);
  choice(ui, "beside", "Beside", { "": 0, ...others }, (_, name) => name || "nothing", (beside) => ({ beside, step: beside ? last : now.step }));
  ui.controls.append(h("div", {}, button(() => ui.set(visit(now.step - 1)), "Previous step"), button(() => ui.set(visit(now.step + 1)), "Next step")));

  const title = () => `Step ${now.step}: ${rung().name}`;
  diagram(ui, rung, () => (other() ? [] : gone(now.step)), mark, title);
  diagram(ui, other, () => [], (name) => difference(find(other(), name), find(rung(), name)), () => now.beside);

  panel(ui, () => {
    const name = now.part, part = find(rung(), name), old = find(other() ?? rungs[now.step - 1], name), than = other() ? `in ${now.beside}` : "before";
    const met = range(now.step + 1).filter((i) => (i ? news(i, name) : find(rungs[0], name))).reverse();
    const [here, there] = [part, old].map((one) => Object.fromEntries(one?.fields ?? [])), sum = (one) => count(one?.parameters ?? 0);
    const cells = (field) =>
      other() ? [h("td", {}, here[field] ?? "–"), h("td", {}, there[field] ?? "–")]
      : [h("td", {}, ...(field in there && here[field] !== there[field] ? [h("s", {}, there[field]), " → ", h("b", {}, here[field] ?? "–")] : [here[field]]))];
    return [
      h("p", { class: "title" }, names[name], part && part.title !== names[name] ? `: ${part.title}` : ""),
      h("p", {}, part?.what ?? (old ? `${other() ? `Only ${than}` : "Taken out in this step"}. ${old.what}` : "This model has none.")),
      h("p", {}, `Parameters: ${sum(part)}${old && sum(old) !== sum(part) ? `, ${sum(old)} ${than}` : ""}. The model: ${count(rung().parameters)}, stored in ${rung().size}.`),
      ...(met.length ? [h("p", {}, ...met.flatMap((i, n) => [n ? "; " : "See ", chapter(rungs[i].chapter), `, ${rungs[i].name} (${rungs[i].paper})`]), ".")] : []),
      h("table", {}, h("caption", {}, `Config fields that drive it${other() ? `, and ${than}` : ""}`),
        ...Object.keys({ ...here, ...there }).map((field) => h("tr", {}, h("th", { scope: "row" }, field), ...cells(field)))),
    ];
  }, { class: "half about", tabindex: 0, role: "group", "aria-label": "The selected part" });

  const marked = (word) => both().filter((name) => mark(name) === word).map((name) => names[name]).join(", ") || "nothing";
  const shown = (part) => (part ? `${part.title}, ${count(part.parameters)} parameters` : "not in this model");
  const status = () => {
    const { name, changes } = rung(), key = now.part, sign = mark(key) && ` (${mark(key)})`, selected = `Selected: ${names[key]}${sign}: ${shown(find(rung(), key))}`;
    return [`Step ${now.step} of ${last}, ${name}${other() ? `, beside ${now.beside}: built differently ${marked("differs")}; in other sizes ${marked("sizes")}; ` +
      `only here ${marked("only here")}; only there ${marked("only there")}. ${selected}; there ${shown(find(other(), key))}.` : `${changes && `: ${changes}`}. ${selected}.`}`];
  };
  const tables = () => {
    const cells = (part) => (part ? [[part.title, ...part.notes].join("; "), part.parameters] : ["none", 0]);
    const fields = ["name", "changes", "parameters", "size", "chapter", "paper"];
    return [
      table("Steps of the ladder", ["step", "rung", "changes", "parameters", "weights", "chapter", "source"], last + 1, (i) => [i, ...fields.map((field) => rungs[i][field])]),
      table(title(), ["part", rung().name, "parameters", ...(other() ? [now.beside, "parameters"] : []), "difference"], both().length, (k) => {
        const name = both()[k];
        return [names[name], ...cells(find(rung(), name)), ...(other() ? cells(find(other(), name)) : []), mark(name)];
      }),
    ];
  };
  return finish(ui, { status, tables, note: "Read the diagram upwards. The line at the left is the residual stream. Parameters count a part in all blocks together. " +
    "Keys and values are the filled boxes under the queries that share them; masks have queries downwards and keys to the right." });
}

// How a part differs from another model's: as anatomy.compare_parts says it.
function difference(one, other) {
  if (!one || !other) return one ? "only here" : other ? "only there" : "";
  const [a, b] = [one, other].map(({ fields }) => Object.fromEntries(fields)), isNumber = (text) => /^[\d.,e-]+$/.test(text);
  const unlike = Object.keys({ ...a, ...b }).filter((name) => a[name] !== b[name]);
  if (!unlike.every((name) => isNumber(a[name]) && isNumber(b[name]))) return "differs";
  return unlike.length || one.parameters !== other.parameters ? "sizes" : "";
}

// A model as a drawing whose parts are buttons; `gone` are drawn too, `mark` names what is new.
function diagram(ui, shown, gone, mark, title) {
  const { now } = ui, { parts, rungs, frame } = now, [, , width, height] = frame.view;
  const drawing = s("svg", { viewBox: frame.view, role: "group", keydown: walk }), caption = h("figcaption");
  const figure = h("figure", { class: "half drawing" });
  ui.figures.append(figure);
  ui.plots.push({ figure, caption: title, canvas: picture });
  const glyph = ([kind, d]) => s("path", { class: kind, d });
  const text = (x, y, words, more = {}) => s("text", { x, y, ...more }, words);
  let boxes = [], drawn;

  function draw() {
    const here = shown().parts.map((k) => parts[k]), focused = boxes.find((box) => box.node.matches(":focus"));
    boxes = [...here, ...gone()].flatMap((part) => part.boxes.map((place) => ({ part, place, node: box(part, place, mark(part.name)) })))
      .sort((a, b) => a.place[1] - b.place[1] || a.place[0] - b.place[0]);
    drawing.replaceChildren(
      ...frame.wires.map(glyph), ...frame.labels.map(([words, x, y]) => text(x, y, words, { class: "small" })),
      text(...frame.blocks, shown().blocks, { class: "small", "text-anchor": "end" }),
      ...boxes.map(({ node }) => node), ...here.map((part) => s("g", { "pointer-events": "none" }, ...part.glyphs.map(glyph))));
    drawing.setAttribute("aria-label", `${title()}. Up and down walk the parts, left and right the steps`);
    (boxes.find(({ part, place }) => focused?.part.name === part.name && focused.place[1] === place[1]) ?? (focused && boxes[0]))?.node.focus();
  }
  function box(part, [x, y, w, tall, place], sign) {
    const round = w <= frame.sign, inline = tall < frame.inline, top = y + (inline ? tall / 2 + 4 : 18), select = () => ui.set({ part: part.name });
    const node = s("g", {
      class: `box ${sign && "mark"} ${sign}`, role: "button", "aria-label": [part.title, ...part.notes, place, sign].filter(Boolean).join(", "), click: select, focus: select,
    }, s("rect", { x, y, width: w, height: tall, rx: round ? w / 2 : 5 }));
    if (round) node.append(text(x + w / 2, top, "+", { class: "name", "text-anchor": "middle" }));
    else if (inline) node.append(text(x + 8, top, s("tspan", { class: "name" }, part.title), { class: "note" }));
    else node.append(text(x + 8, top, part.title, { class: "name" }));
    if (!round) part.notes.forEach((note, k) =>
      inline ? node.lastChild.append(`  ${note}`) : node.append(text(x + 8, top + 15 * (k + 1), note, { class: "note" })));
    if (sign) {
      const wide = 6.4 * sign.length + 12, left = x + w - wide + (round ? wide - 4 : 4);
      node.append(s("rect", { class: "chip", x: left, y: y - 7, width: wide, height: 14, rx: 7 }),
        text(left + wide / 2, y + 3.5, sign, { class: "chiptext", "text-anchor": "middle" }));
    }
    return node;
  }
  function walk(event) {
    const { key } = event, by = { ArrowUp: -1, ArrowDown: 1 }[key], turn = { ArrowLeft: -1, ArrowRight: 1 }[key];
    const at = boxes.findIndex(({ node }) => node === event.target.closest("g"));
    if (by) boxes[clamp(at + by, 0, boxes.length - 1)].node.focus();
    else if (turn) ui.set({ step: clamp(now.step + turn, 0, rungs.length - 1) });
    else if (key === "Enter" || key === " ") ui.set({ part: boxes[at].part.name });
    else return;
    event.preventDefault();
  }
  // The drawing as an image: its colors are properties of the page, so they go along.
  async function picture() {
    const copy = drawing.cloneNode(true), scale = devicePixelRatio, image = new Image(width * scale, height * scale);
    for (const [name, size] of Object.entries({ width, height })) copy.setAttribute(name, size * scale);
    copy.setAttribute("style", `max-width: none; ${THEME.map((name) => `--${name}: ${ui.colors[name]}`).join(";")}`);
    copy.prepend(s("style", {}, `${CSS} .mark { animation: none; }`)); // an image shows its first moment
    image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
    await image.decode();
    return image;
  }
  ui.updates.push(() => {
    figure.hidden = !shown();
    if (figure.hidden) return figure.replaceChildren(); // an empty drawing would be one to print
    if (!figure.firstChild) figure.append(caption, drawing);
    if (drawn !== (drawn = `${now.step} ${now.beside}`)) draw();
    say(caption, title());
    const picked = boxes.filter(({ part }) => part.name === now.part);
    const stop = boxes.find(({ node }) => node.matches(":focus")) ?? picked[0] ?? boxes[0];
    for (const one of boxes) {
      one.node.setAttribute("aria-pressed", picked.includes(one));
      one.node.setAttribute("tabindex", one === stop ? 0 : -1);
    }
  });
}

// A link, where the page has one: the book's contents do, a saved file does not.
function chapter(number) {
  const link = [...document.links].find((a) => a.pathname.split("/").pop().startsWith(`${number}_`));
  return link ? h("a", { href: link.href.split("#")[0] }, `chapter ${number}`) : `chapter ${number}`;
}

export default { render };
