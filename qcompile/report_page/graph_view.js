// The graph on a canvas: only what is in view is drawn, so that thousands of nodes stay fluid.
Q.graph = (() => {
  const N = Q.data.nodes, count = N.op.length;
  const canvas = Q.by("canvas"), pen = canvas.getContext("2d");
  const view = {scale: 1, x: 0, y: 0};
  const into = Array.from({length: count}, () => []), out = Array.from({length: count}, () => []);
  N.edges.forEach(([a, b], i) => { out[a].push(i); into[b].push(i); });
  let selected = -1, queued = false, colours = {}, paint = "precision";
  const boxes = N.edges.map((e) => {
    let low = Infinity, high = -Infinity, left = Infinity, right = -Infinity;
    for (let k = 2; k < e.length; k += 2) {
      left = Math.min(left, e[k]); right = Math.max(right, e[k]);
      low = Math.min(low, e[k + 1]); high = Math.max(high, e[k + 1]);
    }
    return [left, low, right, high];
  });

  const layerOf = (i) => N.layer[i] < 0 ? null : Q.data.layers[N.layer[i]];
  const kindOf = (i) => { const layer = layerOf(i); return layer ? Q.kind(layer.realised) : "other"; };
  const kinds = N.op.map((_, i) => kindOf(i));
  const sqnrs = N.sqnr.filter((v) => v != null);
  const least = Math.min(...sqnrs, 10), most = Math.max(Math.min(60, Math.max(...sqnrs, 20)), least + 1);

  function errorColour(db) {
    if (db == null) return colours.other;
    const share = Math.max(0, Math.min(1, (db - least) / (most - least)));
    return `hsl(${Math.round(share * 165)} 62% ${Q.theme.dark() ? 34 : 36}%)`;
  }

  const fill = (i) => paint === "error" ? errorColour(N.sqnr[i]) : colours[kinds[i]];

  function readColours() {
    for (const name of ["int8", "dynamic", "float", "other", "edge", "text", "accent", "bg", "bad"]) colours[name] = Q.theme.css(name);
  }

  function trace(e, curved) {
    pen.moveTo(e[2], e[3]);
    for (let k = 4; k < e.length; k += 2) {
      if (!curved || e[k] === e[k - 2]) pen.lineTo(e[k], e[k + 1]);
      else {
        const middle = (e[k - 1] + e[k + 1]) / 2;
        pen.bezierCurveTo(e[k - 2], middle, e[k], middle, e[k], e[k + 1]);
      }
    }
  }

  function jump(a, b) { // an edge that has no route of its own
    pen.moveTo(N.x[a], N.y[a] + N.h[a] / 2);
    pen.bezierCurveTo(N.x[a], N.y[a] + N.h[a] / 2 + 90, N.x[b], N.y[b] - N.h[b] / 2 - 90, N.x[b], N.y[b] - N.h[b] / 2);
  }

  function draw() {
    queued = false;
    const ratio = devicePixelRatio || 1, {scale} = view;
    const wide = canvas.clientWidth, high = canvas.clientHeight;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round(high * ratio);
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.setTransform(scale * ratio, 0, 0, scale * ratio, view.x * ratio, view.y * ratio);
    const left = -view.x / scale, top = -view.y / scale, right = left + wide / scale, bottom = top + high / scale;

    pen.lineWidth = Math.max(1, 0.7 / scale);
    pen.strokeStyle = colours.edge;
    pen.globalAlpha = scale < 0.15 ? 0.5 : 0.9;
    pen.beginPath();
    N.edges.forEach((e, i) => {
      const box = boxes[i];
      if (e.length > 2 && box[0] <= right && box[2] >= left && box[1] <= bottom && box[3] >= top) trace(e, scale > 0.2);
    });
    pen.stroke();
    pen.globalAlpha = 1;

    if (selected >= 0) {
      pen.strokeStyle = colours.accent;
      pen.lineWidth = Math.max(2, 2 / scale);
      pen.beginPath();
      for (const i of [...into[selected], ...out[selected]]) {
        const e = N.edges[i];
        if (e.length > 2) trace(e, true); else jump(e[0], e[1]);
      }
      pen.stroke();
    }

    const text = scale > 0.42;
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let i = 0; i < count; i++) {
      const w = N.w[i], h = N.h[i], x = N.x[i] - w / 2, y = N.y[i] - h / 2;
      if (x > right || x + w < left || y > bottom || y + h < top) continue;
      pen.fillStyle = fill(i);
      if (scale < 0.12) { pen.fillRect(x, y, w, h); continue; }
      pen.beginPath();
      pen.roundRect(x, y, w, h, N.layer[i] < 0 ? h / 2 : 5);
      pen.fill();
      const layer = layerOf(i);
      if (layer && layer.requested !== layer.realised) {
        pen.strokeStyle = colours.bad;
        pen.lineWidth = 2;
        pen.setLineDash([4, 3]);
        pen.stroke();
        pen.setLineDash([]);
      }
      if (text) {
        pen.fillStyle = "#fff";
        pen.fillText(N.op[i], N.x[i], N.y[i] + 0.5);
      }
    }
    if (selected >= 0) {
      const i = selected, pad = 3 + 1 / scale;
      pen.strokeStyle = colours.accent;
      pen.lineWidth = Math.max(3, 3 / scale);
      pen.strokeRect(N.x[i] - N.w[i] / 2 - pad, N.y[i] - N.h[i] / 2 - pad, N.w[i] + 2 * pad, N.h[i] + 2 * pad);
    }
  }

  const redraw = () => { if (!queued) { queued = true; requestAnimationFrame(draw); } };

  function fit() {
    const pad = 30, wide = canvas.clientWidth, high = canvas.clientHeight;
    view.scale = Math.min(1.2, (wide - 2 * pad) / Math.max(1, N.width), (high - 2 * pad) / Math.max(1, N.height));
    view.x = (wide - N.width * view.scale) / 2;
    view.y = (high - N.height * view.scale) / 2;
    redraw();
  }

  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const scale = Math.max(0.01, Math.min(4, view.scale * factor)), by = scale / view.scale;
    view.x = x - (x - view.x) * by;
    view.y = y - (y - view.y) * by;
    view.scale = scale;
    redraw();
  }

  function select(i, centre) {
    selected = i;
    if (i >= 0 && centre) {
      if (view.scale < 0.6) view.scale = 0.8;
      view.x = canvas.clientWidth / 2 - N.x[i] * view.scale;
      view.y = canvas.clientHeight / 2 - N.y[i] * view.scale;
    }
    redraw();
    Q.panel.show(i);
  }

  function at(px, py) {
    const x = (px - view.x) / view.scale, y = (py - view.y) / view.scale, reach = 4 / view.scale;
    for (let i = count - 1; i >= 0; i--) {
      if (Math.abs(x - N.x[i]) <= N.w[i] / 2 + reach && Math.abs(y - N.y[i]) <= N.h[i] / 2 + reach) return i;
    }
    return -1;
  }

  function legend() {
    const shown = Q.by("legend");
    shown.replaceChildren();
    const entry = (colour, words) => {
      const swatch = Q.make("i");
      swatch.style.background = colour;
      shown.append(Q.make("span", {}, swatch, words));
    };
    if (paint === "error") {
      for (const db of [least, (least + most) / 2, most]) entry(errorColour(db), `${db.toFixed(0)} dB${db === most ? " and better" : ""}`);
      entry(colours.other, "not known");
      return;
    }
    const tally = {};
    kinds.forEach((k) => { tally[k] = (tally[k] || 0) + 1; });
    const integer = [...new Set(Q.data.layers.map((x) => x.realised).filter((w) => Q.kind(w) === "int8"))].sort();
    const words = {int8: integer.join(", ").toUpperCase(), dynamic: "INT8, scales at run time", float: "float", other: "no choice (shapes, moves, inputs)"};
    for (const [k, what] of Object.entries(words)) if (tally[k]) entry(colours[k], `${what} (${tally[k]})`);
    if (Q.data.layers.some((x) => x.requested !== x.realised)) shown.append(Q.make("span", {}, "dashed: not as requested"));
  }

  readColours();
  Q.theme.watchers.push(() => { readColours(); legend(); redraw(); });
  new ResizeObserver(redraw).observe(canvas);
  return {
    canvas, view, into, out, fit, zoom, select, at, redraw, legend, kindOf, layerOf,
    selected: () => selected,
    colour: (how) => { paint = how; legend(); redraw(); },
    find: (origin) => N.origin.findIndex((name, i) => name === origin && N.op[i] !== "input" && N.op[i] !== "output"),
  };
})();
