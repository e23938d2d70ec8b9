// Order of events when the page opens.
const all = () => { Q.charts.base(); Q.charts.pareto(); Q.charts.depth(); Q.charts.time(); Q.layers.redraw(); };
Q.layers.start();
Q.theme.watchers.unshift(all);
Q.theme.start();
Q.graph.legend();
Q.graph.fit();
Q.panel.show(-1);
