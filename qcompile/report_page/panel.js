// What is known about the selected node.
Q.panel = (() => {
  const D = Q.data, N = D.nodes;
  const tensors = new Map(D.tensors.map((t) => [t.name, t]));
  const weights = new Map(D.weights.map((w) => [w.origin, w]));
  let shown = -1, charts = [];

  const root = (t) => t && t.same_as ? {...tensors.get(t.same_as), name: t.name, clip_low: t.clip_low, clip_high: t.clip_high} : t;
  const clip = (t) => [t.clip_low, t.clip_high];

  function describe(t) {
    const seen = t.low == null ? "" : `seen ${Q.number(t.low)} to ${Q.number(t.high)}; `;
    const cut = t.clipped == null ? "" : `; clipped ${Q.percent(t.clipped)}`;
    const zero = t.zeros ? `; ${Q.percent(t.zeros)} are zero` : "";
    return `${seen}range ${Q.number(t.clip_low)} to ${Q.number(t.clip_high)} by ${t.method}${cut}${zero}`;
  }

  function rows(pairs) {
    const list = Q.make("dl");
    for (const [name, value] of pairs) if (value != null && value !== "") list.append(Q.make("dt", {}, name), Q.make("dd", {}, value));
    return list;
  }

  function links(found, words) {
    if (!found.length) return [];
    const unique = [...new Set(found)];
    const list = Q.make("div", {class: "go-list"}, ...unique.slice(0, 12).map((i) => Q.make("button", {type: "button", class: "go", onclick: () => Q.graph.select(i, true)}, `${N.origin[i]}  (${N.op[i]})`)));
    if (unique.length > 12) list.append(Q.make("span", {class: "muted"}, `and ${unique.length - 12} more`));
    return [Q.make("h4", {}, words), list];
  }

  // Where to look first, while nothing is selected.
  function overview() {
    const parts = [Q.make("p", {class: "hint"}, "Select a node: click it, or find it by name. On the graph arrow keys follow the edges, + and − zoom, 0 shows everything.")];
    const most = (words, values, text, order) => {
      const found = N.op.map((_, i) => i).filter((i) => values(i) != null).sort((a, b) => order * (values(a) - values(b))).slice(0, 6);
      if (found.length) parts.push(Q.make("h4", {}, words), Q.make("ul", {class: "first"}, ...found.map((i) => Q.make("li", {}, Q.make("span", {class: "num"}, text(values(i))), Q.make("button", {type: "button", class: "go", onclick: () => Q.graph.select(i, true)}, Q.make("bdi", {}, N.origin[i])), Q.make("span", {class: `tag ${Q.graph.kindOf(i)}`}, N.op[i])))));
    };
    const layer = Q.graph.layerOf;
    most("Most time in the artifact", (i) => N.artifactNs[i] || null, (v) => `${Q.micros(v)} µs`, -1);
    most("Least accurate weights", (i) => N.weightDb[i] ?? null, (v) => `${v.toFixed(1)} dB`, 1);
    most("Least accurate at its output", (i) => N.sqnr[i] != null && N.sqnr[i] < Q.EXACT ? N.sqnr[i] : null, (v) => `${v.toFixed(1)} dB`, 1);
    const caused = (i) => layer(i) && layer(i).realised !== "float" && layer(i).sensitivity > 0 ? layer(i).sensitivity : null;
    const all = N.op.reduce((sum, _, i) => sum + (caused(i) || 0), 0);
    most("Share of the output's error, each alone", caused, (v) => `${(100 * v / all).toFixed(v > 0.1 * all ? 0 : 1)} %`, -1);
    return parts;
  }

  function chart(label, draw) {
    const id = `panel-chart-${charts.length}`;
    charts.push([id, draw]);
    return Q.make("div", {class: "chart"}, Q.make("canvas", {id, role: "img", "aria-label": label}));
  }

  function costs(layer, i) {
    const known = [["float", layer && layer.float_ns], ["INT8", layer && layer.int_ns], ["INT8, scales at run time", layer && layer.dynamic_ns]].filter(([, ns]) => ns != null);
    const found = known.map(([name, ns]) => [`cost in ${name}`, `${Q.micros(ns)} µs`]);
    if (N.floatNs[i] != null) found.push(["in the float model", `${Q.micros(N.floatNs[i])} µs`], ["in the artifact", `${Q.micros(N.artifactNs[i])} µs`]);
    return found;
  }

  function show(i) {
    const panel = Q.by("panel");
    for (const [id] of charts) Q.charts.drop(id);
    charts = [];
    shown = i;
    if (i < 0) { panel.replaceChildren(...overview()); return; }
    const layer = Q.graph.layerOf(i), parts = [];
    parts.push(Q.make("h3", {class: "name"}, N.origin[i]));
    const line = Q.make("p", {}, `${N.op[i]}  `);
    if (layer) {
      line.append(Q.make("span", {class: `tag ${Q.kind(layer.realised)}`}, layer.realised));
      if (layer.requested !== layer.realised) line.append(` asked for ${layer.requested}`);
      if (layer.pinned) line.append(" (pinned)");
    }
    parts.push(line);
    if (layer && layer.reason) parts.push(Q.make("p", {class: "reason", id: "reason"}, layer.reason));
    else if (!layer && N.op[i] !== "input" && N.op[i] !== "output") parts.push(Q.make("p", {class: "reason", id: "reason"}, "not in the plan: it computes shapes or moves values, or the target has no word on it"));
    parts.push(rows([
      ["executed as", layer && layer.executed_as],
      ["error at its output", N.sqnr[i] == null ? null : N.sqnr[i] >= Q.EXACT ? "none: as in float" : `${Q.db(N.sqnr[i])} dB SQNR`],
      ["error of its weights", N.weightDb[i] == null ? null : `${Q.db(N.weightDb[i])} dB SQNR`],
      ["output error it causes alone", layer && layer.sensitivity != null ? Q.number(layer.sensitivity, 3) : null],
      ...costs(layer, i),
      ["multiply-adds", layer && layer.macs ? Q.count(layer.macs) : null],
      ["shape", N.shape[i]],
    ]));
    for (const [names, words] of [[N.writes[i], "Writes"], [N.reads[i], "Reads"]]) {
      for (const name of names.slice(0, 4)) {
        const t = root(tensors.get(name));
        if (!t) continue;
        parts.push(Q.make("h4", {}, `${words} ${name}`), Q.make("p", {class: "sub"}, describe(t)));
        if (t.histogram) parts.push(chart(`Histogram of ${name}`, (id) => Q.charts.histogram(id, t.histogram, clip(t), name)));
      }
    }
    const w = weights.get(N.origin[i]);
    if (w) {
      parts.push(Q.make("h4", {}, `Weight ${w.name}, ${w.shape.join("×")}`));
      parts.push(chart("Weight range of each channel", (id) => Q.charts.channels(id, w)));
      if (w.histogram) parts.push(chart("Histogram of the weight", (id) => Q.charts.histogram(id, w.histogram, null, w.name)));
    }
    const notes = D.notes[N.origin[i]];
    if (notes) parts.push(Q.make("h4", {}, "What passes did"), Q.make("ul", {class: "log"}, ...notes.map((n) => Q.make("li", {}, n))));
    parts.push(...links(Q.graph.into[i].map((k) => N.edges[k][0]), "Comes from"), ...links(Q.graph.out[i].map((k) => N.edges[k][1]), "Goes to"));
    panel.replaceChildren(...parts);
    panel.scrollTop = 0;
    for (const [id, draw] of charts) draw(id);
  }

  Q.theme.watchers.push(() => { for (const [id, draw] of charts) draw(id); });
  return {show, tensors, weights, root, clip, describe, shown: () => shown};
})();
