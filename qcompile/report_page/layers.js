// The table of layers, and the choice of one tensor and one weight.
Q.layers = (() => {
  const D = Q.data, PAGE = 100;
  const sqnr = new Map();
  D.nodes.origin.forEach((name, i) => { if (D.nodes.sqnr[i] != null) sqnr.set(name, D.nodes.sqnr[i]); });
  const rows = D.layers.map((x, index) => ({...x, index, sqnr: sqnr.get(x.origin) ?? null}));
  const table = Q.by("layer-table"), body = table.tBodies[0];
  let key = "index", up = true, limit = PAGE;

  function matching() {
    const words = Q.by("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const text = (r) => `${r.origin} ${r.op_type} ${r.realised} ${r.reason || ""}`.toLowerCase();
    return rows.filter((r) => { const all = text(r); return words.every((w) => all.includes(w)); });
  }

  function compare(a, b) {
    const x = a[key], y = b[key];
    if (x == null || y == null) return (x == null) - (y == null); // what is not known stands last
    const order = typeof x === "string" ? x.localeCompare(y, "en") : x - y;
    return (up ? order : -order) || a.index - b.index;
  }

  function draw() {
    const found = matching().sort(compare);
    body.replaceChildren(...found.slice(0, limit).map((r) => Q.make("tr", {},
      Q.make("td", {class: "num"}, String(r.index)),
      Q.make("td", {}, Q.make("button", {type: "button", class: "go", "data-origin": r.origin}, r.origin)),
      Q.make("td", {}, r.op_type),
      Q.make("td", {}, Q.make("span", {class: `tag ${Q.kind(r.realised)}`}, r.realised)),
      Q.make("td", {class: "num"}, r.macs ? Q.count(r.macs) : ""),
      Q.make("td", {class: "num"}, r.float_ns == null ? "" : Q.micros(r.float_ns)),
      Q.make("td", {class: "num"}, r.int_ns == null ? "" : Q.micros(r.int_ns)),
      Q.make("td", {class: "num"}, r.sqnr == null ? "" : Q.db(r.sqnr)),
      Q.make("td", {}, r.reason || ""))));
    Q.by("shown").textContent = `${Math.min(limit, found.length)} of ${found.length} shown`;
    Q.by("more").hidden = found.length <= limit;
    for (const th of table.tHead.rows[0].cells) {
      if (th.dataset.key === key) th.setAttribute("aria-sort", up ? "ascending" : "descending");
      else th.removeAttribute("aria-sort");
    }
  }

  table.tHead.addEventListener("click", (e) => {
    const th = e.target.closest("th");
    if (!th) return;
    up = th.dataset.key === key ? !up : true;
    key = th.dataset.key;
    draw();
  });
  Q.by("filter").addEventListener("input", () => { limit = PAGE; draw(); });
  Q.by("more").addEventListener("click", () => { limit += 5 * PAGE; draw(); });

  function tensor(name) {
    const t = Q.panel.root(Q.panel.tensors.get(name));
    if (!t) return;
    Q.by("tensor-text").textContent = Q.panel.describe(t) + (t.histogram ? "" : "; its histogram is not in the report");
    Q.by("tensor-chart").parentElement.hidden = !t.histogram;
    Q.charts.histogram("tensor-chart", t.histogram, Q.panel.clip(t), t.name);
  }

  function weight(origin) {
    const w = Q.panel.weights.get(origin);
    if (!w) return;
    const grouped = w.grouped > 1 ? `, drawn in groups of ${w.grouped}` : "";
    Q.by("weight-text").textContent = `${w.name}, ${w.shape.join("×")}: ${w.channels} channels${grouped}`;
    Q.charts.channels("weight-chart", w);
  }

  function chooser(id, names, first, act) {
    const input = Q.by(id);
    if (!names.length) {
      Q.by(`${id}-text`).textContent = "none are in the report";
      input.disabled = true;
      return;
    }
    Q.by(`${id}-names`).replaceChildren(...names.map((name) => Q.make("option", {value: name})));
    input.value = first;
    input.addEventListener("focus", () => input.select());
    input.addEventListener("change", () => act(input.value));
  }

  function start() {
    const worst = [...D.tensors].filter((t) => t.histogram).sort((a, b) => (b.clipped || 0) - (a.clipped || 0))[0] || D.tensors[0];
    chooser("tensor", D.tensors.map((t) => t.name), worst?.name, tensor);
    const spread = (w) => { const widest = w.low.map((v, k) => Math.max(-v, w.high[k])); return Math.max(...widest) / (widest.reduce((a, b) => a + b, 0) / widest.length || 1); };
    const uneven = [...D.weights].filter((w) => w.channels > 1).sort((a, b) => spread(b) - spread(a))[0] || D.weights[0];
    chooser("weight", D.weights.map((w) => w.origin), uneven?.origin, weight);
    draw();
  }

  const redraw = () => { tensor(Q.by("tensor").value); weight(Q.by("weight").value); };
  return {start, redraw};
})();
