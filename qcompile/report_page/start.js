// Order of events when the page opens: what is seen first is drawn first, the rest once the page stands.
const drawings = [Q.charts.pareto, Q.charts.depth, Q.layers.redraw, Q.charts.time];
let drawn = 0;
const base = () => { Q.charts.base(); drawings.slice(0, drawn).forEach((draw) => draw()); };
const next = () => { if (drawn < drawings.length) { drawings[drawn++](); setTimeout(next); } };
addEventListener("beforeprint", () => { while (drawn < drawings.length) drawings[drawn++](); });
Q.layers.start();
Q.theme.watchers.unshift(base);
Q.theme.start();
Q.graph.legend();
Q.graph.fit();
Q.panel.show(-1);
addEventListener("load", () => setTimeout(next));
