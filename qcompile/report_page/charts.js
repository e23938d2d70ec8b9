// The charts; each is made anew when the theme changes.
Q.charts = (() => {
  const D = Q.data, made = new Map();

  function base() {
    Chart.defaults.color = Q.theme.css("muted");
    Chart.defaults.borderColor = Q.theme.css("line");
    Chart.defaults.font.family = "system-ui, 'DejaVu Sans', sans-serif";
    Chart.defaults.animation = false;
    Chart.defaults.maintainAspectRatio = false;
  }

  function put(id, config) {
    const canvas = Q.by(id);
    if (!canvas) return;
    made.get(id)?.destroy();
    made.delete(id);
    if (config) made.set(id, new Chart(canvas, config));
  }

  function drop(id) {
    made.get(id)?.destroy();
    made.delete(id);
  }

  function without(boxId, text) { // a chart that has no data says so
    const box = Q.by(boxId);
    if (box) { box.replaceChildren(Q.make("p", {class: "note"}, text)); box.style.height = "auto"; }
  }

  const title = (text) => ({display: true, text});

  function pareto() {
    const timed = D.candidates.filter((c) => c.speedup && c.sqnr_db != null);
    if (timed.length === 1 && !D.front.length) return without("pareto-box", "One plan was built and timed, and no other was predicted: there is no front to draw.");
    if (!timed.length) return without("pareto-box", "No plan was timed here, so there is nothing to draw.");
    const point = (c) => ({x: 100 / c.speedup, y: c.sqnr_db, of: c});
    // predictions far above all that was built would press what was built into the bottom
    const built = timed.map((c) => c.sqnr_db), top = Math.max(...built) + Math.max(15, Math.max(...built) - Math.min(...built));
    const predicted = D.front.filter((p) => p.speedup && p.sqnr_db != null);
    const front = predicted.filter((p) => p.sqnr_db <= top).map((p) => ({x: 100 / p.speedup, y: p.sqnr_db, of: p}));
    const beyond = predicted.length > front.length ? `, on to ${Math.max(...predicted.map((p) => p.sqnr_db)).toFixed(0)} dB` : "";
    const sets = [
      {label: "chosen", data: timed.filter((c) => c.chosen).map(point), pointStyle: "star", radius: 12, hoverRadius: 14, borderWidth: 3, borderColor: Q.theme.css("accent"), backgroundColor: Q.theme.css("accent")},
      {label: "built and run", data: timed.map(point), pointStyle: "circle", radius: 6, hoverRadius: 8, backgroundColor: Q.theme.css("int8"), borderColor: Q.theme.css("int8")},
    ];
    if (front.length) sets.push({label: `predicted front${beyond}`, data: front, showLine: true, radius: 2.5, borderWidth: 1.5, borderColor: Q.theme.css("before"), backgroundColor: Q.theme.css("before"), borderDash: [5, 4]});
    put("pareto-chart", {
      type: "scatter", data: {datasets: sets},
      options: {
        scales: {x: {title: title("latency, % of float (left is faster)")}, y: {title: title("SQNR at the output, dB (up is better)")}},
        plugins: {
          legend: {labels: {usePointStyle: true}},
          tooltip: {callbacks: {label: ({raw}) => {
            const c = raw.of, ms = c.ms != null ? `${Q.number(c.ms)} ms` : `${Q.number(c.latency_ns / 1e6)} ms predicted`;
            return `${c.name || "predicted plan"}: ${c.speedup.toFixed(2)}×, ${ms}, ${c.sqnr_db.toFixed(1)} dB`;
          }}},
        },
      },
    });
  }

  function depth() {
    const N = D.nodes, points = [];
    N.sqnr.forEach((db, i) => { if (db != null && db < Q.EXACT) points.push({x: points.length, y: db, node: i}); });
    if (!points.length) return without("depth-box", N.sqnr.some((db) => db != null) ? "No layer differs from float." : "The error by layer was not measured.");
    const colour = points.map((p) => Q.theme.css(Q.graph.kindOf(p.node)));
    put("depth-chart", {
      type: "scatter",
      data: {datasets: [{data: points, showLine: points.length < 1500, borderWidth: 1, borderColor: Q.theme.css("line"), pointBackgroundColor: colour, pointBorderColor: colour, radius: points.length > 800 ? 1.8 : 3, hoverRadius: 6}]},
      options: {
        scales: {x: {title: title("layers in graph order"), min: 0, max: Math.max(1, points.length - 1)}, y: {title: title("SQNR, dB")}},
        interaction: {mode: "nearest", intersect: false},
        plugins: {legend: {display: false}, tooltip: {callbacks: {label: ({raw}) => `${N.origin[raw.node]} (${N.op[raw.node]}): ${N.sqnr[raw.node].toFixed(1)} dB`}}},
        onClick: (_, hit) => { if (hit.length) Q.go(N.origin[points[hit[0].index].node]); },
      },
    });
  }

  // What a kernel does, whatever its precision: Conv for QLinearConv, ConvInteger and FusedConv.
  function act(op) {
    if (/^(DynamicQuantizeLinear|QuantizeLinear|DequantizeLinear)$/.test(op)) return "to and from integers";
    if (/^Reorder(Input|Output)$/.test(op)) return "changes of layout";
    const plain = op.replace(/^(Nhwc|Fused|QLinear|DynamicQuantize|Q(?=[A-Z])|Simplified|Skip)+/, "").replace(/(Integer(ToFloat)?|NBits|Bnb4)$/, "");
    return plain || op;
  }

  function time() {
    if (!D.operators) return;
    const sum = new Map();
    const side = (rows, k) => rows.forEach((r) => { const name = act(r.op_type), both = sum.get(name) || [0, 0]; both[k] += r.ns / 1000; sum.set(name, both); });
    side(D.operators.before, 0);
    side(D.operators.after, 1);
    const order = [...sum].sort((a, b) => Math.max(...b[1]) - Math.max(...a[1]));
    const shown = order.slice(0, 12), rest = order.slice(12);
    if (rest.length) shown.push([`${rest.length} more`, [0, 1].map((k) => rest.reduce((t, r) => t + r[1][k], 0))]);
    const most = Math.max(...order.map((r) => Math.max(...r[1]))), [unit, scale] = most > 1e4 ? ["ms", 1e-3] : ["µs", 1];
    const bars = (label, k, colour) => ({label, data: shown.map((r) => r[1][k] * scale), backgroundColor: Q.theme.css(colour)});
    Q.by("time-box").style.height = `${80 + 30 * shown.length}px`;
    put("time-chart", {
      type: "bar", data: {labels: shown.map((r) => r[0]), datasets: [bars("float", 0, "before"), bars("artifact", 1, "int8")]},
      options: {
        indexAxis: "y",
        scales: {x: {title: title(`${unit} of one inference`)}, y: {ticks: {autoSkip: false}, grid: {display: false}}},
        plugins: {tooltip: {callbacks: {label: ({dataset, raw}) => `${dataset.label}: ${Q.number(raw)} ${unit}`}}},
      },
    });
  }

  const limits = { // vertical lines where the range ends
    id: "limits",
    afterDatasetsDraw(chart, _, {at}) {
      if (!at) return;
      const {ctx, chartArea: area, scales: {x}} = chart;
      ctx.save();
      ctx.strokeStyle = Q.theme.css("float");
      ctx.lineWidth = 2;
      for (const value of at) {
        const px = Math.max(area.left, Math.min(area.right, x.getPixelForValue(value)));
        ctx.beginPath();
        ctx.moveTo(px, area.top);
        ctx.lineTo(px, area.bottom);
        ctx.stroke();
      }
      ctx.restore();
    },
  };

  function histogram(id, h, clip, label) {
    if (!h) return drop(id);
    const low = clip ? Math.min(clip[0], 0) : h.start, high = clip ? Math.max(clip[1], 0) : h.start + h.width * h.counts.length;
    const points = h.counts.map((n, i) => ({x: h.start + (i + 0.5) * h.width, y: n}));
    const slack = Math.max(h.width / 2, (high - low) / 255); // the highest value may open a bin of its own
    const outside = (x) => clip && (x > high + slack || x < low - slack);
    put(id, {
      type: "bar",
      data: {datasets: [{label, data: points, barPercentage: 1, categoryPercentage: 1, grouped: false, backgroundColor: points.map((p) => Q.theme.css(outside(p.x) ? "float" : "int8")), minBarLength: 0}]},
      options: {
        parsing: true,
        scales: {
          x: {type: "linear", offset: false, min: Math.min(low, h.start), max: Math.max(high, h.start + h.width * h.counts.length), grid: {display: false}, ticks: {maxTicksLimit: 7}},
          y: {type: "logarithmic", min: 0.7, ticks: {maxTicksLimit: 5, callback: (v) => Number.isInteger(Math.log10(v)) ? Q.count(v) : ""}, title: title("values")},
        },
        plugins: {legend: {display: false}, limits: {at: clip}, tooltip: {callbacks: {title: () => "", label: ({raw}) => `about ${Q.number(raw.x)}: ${Q.count(raw.y)}`}}},
      },
      plugins: [limits],
    });
  }

  function channels(id, w) {
    if (!w) return drop(id);
    const name = (k) => w.grouped > 1 ? `${k * w.grouped} to ${Math.min(w.channels, (k + 1) * w.grouped) - 1}` : String(k);
    put(id, {
      type: "bar",
      data: {labels: w.low.map((_, k) => name(k)), datasets: [{label: "range", data: w.low.map((v, k) => [v, w.high[k]]), backgroundColor: Q.theme.css("dynamic"), barPercentage: 0.9, categoryPercentage: 1}]},
      options: {
        scales: {x: {title: title(w.channels === 1 ? "the whole weight" : "output channel"), grid: {display: false}, ticks: {maxTicksLimit: 9, maxRotation: 0}}, y: {title: title("weight")}},
        plugins: {legend: {display: false}, tooltip: {callbacks: {label: ({raw}) => `${Q.number(raw[0])} to ${Q.number(raw[1])}`}}},
      },
    });
  }

  return {base, pareto, depth, time, histogram, channels, drop};
})();
