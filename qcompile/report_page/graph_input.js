// Mouse, touch, keys and the search box of the graph.
Q.input = (() => {
  const N = Q.data.nodes, {canvas, view} = Q.graph;
  const fingers = new Map();
  let moved = 0, spread = 0;

  canvas.addEventListener("pointerdown", (e) => {
    canvas.setPointerCapture(e.pointerId);
    fingers.set(e.pointerId, [e.offsetX, e.offsetY]);
    moved = spread = 0;
    canvas.classList.add("dragging");
  });
  canvas.addEventListener("pointermove", (e) => {
    const before = fingers.get(e.pointerId);
    if (!before) return;
    const now = [e.offsetX, e.offsetY];
    fingers.set(e.pointerId, now);
    moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()];
      const apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (spread) Q.graph.zoom(apart / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      spread = apart;
    } else {
      view.x += now[0] - before[0];
      view.y += now[1] - before[1];
      Q.graph.redraw();
    }
  });
  const lift = (e) => {
    if (!fingers.delete(e.pointerId)) return;
    if (!fingers.size) canvas.classList.remove("dragging");
    if (e.type === "pointerup" && moved < 5) Q.graph.select(Q.graph.at(e.offsetX, e.offsetY), false);
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("wheel", (e) => {
    // Without a key the page scrolls on, as readers expect, unless the graph has the focus.
    if (!e.ctrlKey && !e.metaKey && document.activeElement !== canvas) return;
    e.preventDefault();
    Q.graph.zoom(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.0016)), e.offsetX, e.offsetY);
  }, {passive: false});
  canvas.addEventListener("dblclick", (e) => Q.graph.zoom(1.8, e.offsetX, e.offsetY));

  const ends = (i, up) => (up ? Q.graph.into[i] : Q.graph.out[i]).map((k) => N.edges[k][up ? 0 : 1]);

  function step(key) {
    const here = Q.graph.selected();
    if (here < 0) return Q.graph.select(0, true);
    let next = -1;
    if (key === "ArrowUp" || key === "ArrowDown") {
      const found = ends(here, key === "ArrowUp");
      next = found.length ? found[0] : -1;
    } else {
      const way = key === "ArrowLeft" ? -1 : 1;
      let best = Infinity;
      for (let i = 0; i < N.x.length; i++) { // the nearest of about the same height
        const gap = (N.x[i] - N.x[here]) * way, off = Math.abs(N.y[i] - N.y[here]);
        if (gap > 0 && off < 40 && gap + off < best) { best = gap + off; next = i; }
      }
    }
    if (next >= 0) Q.graph.select(next, true);
  }

  canvas.addEventListener("keydown", (e) => {
    const acts = {"+": () => Q.graph.zoom(1.25), "=": () => Q.graph.zoom(1.25), "-": () => Q.graph.zoom(0.8), "0": Q.graph.fit, Escape: () => Q.graph.select(-1, false)};
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.key.startsWith("Arrow")) step(e.key);
    else if (acts[e.key]) acts[e.key]();
    else return;
    e.preventDefault();
  });

  Q.by("zoom-in").addEventListener("click", () => Q.graph.zoom(1.3));
  Q.by("zoom-out").addEventListener("click", () => Q.graph.zoom(1 / 1.3));
  Q.by("zoom-fit").addEventListener("click", Q.graph.fit);
  Q.by("paint").addEventListener("change", (e) => Q.graph.colour(e.target.value));

  const box = Q.by("search"), hits = Q.by("hits");
  let found = [], chosen = 0;

  function list() {
    const wanted = box.value.trim().toLowerCase();
    found = [];
    if (wanted) {
      const ranked = [];
      for (let i = 0; i < N.origin.length; i++) {
        const name = N.origin[i].toLowerCase(), place = name.indexOf(wanted);
        if (name === wanted) ranked.push([0, i]);
        else if (place >= 0) ranked.push([1 + place / 1e3 + name.length / 1e6, i]);
        else if (N.op[i].toLowerCase().includes(wanted)) ranked.push([2, i]);
      }
      found = ranked.sort((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, 40).map((r) => r[1]);
    }
    chosen = 0;
    mark();
  }

  function mark() {
    hits.replaceChildren(...found.map((i, k) => Q.make("li", {role: "option", id: `hit${k}`, "aria-selected": String(k === chosen), onpointerdown: (e) => { e.preventDefault(); take(k); }},
      N.origin[i], Q.make("span", {class: "muted"}, `  ${N.op[i]}`))));
    if (box.value.trim() && !found.length) hits.append(Q.make("li", {class: "muted"}, "nothing has this in its name"));
    hits.hidden = !box.value.trim();
    box.setAttribute("aria-expanded", String(!hits.hidden));
    if (found.length) box.setAttribute("aria-activedescendant", `hit${chosen}`);
    else box.removeAttribute("aria-activedescendant");
    hits.children[chosen]?.scrollIntoView({block: "nearest"});
  }

  function close() {
    hits.hidden = true;
    box.setAttribute("aria-expanded", "false");
  }

  function take(k) {
    if (k < found.length) Q.graph.select(found[k], true);
    close();
  }

  box.addEventListener("input", list);
  box.addEventListener("focus", () => { if (box.value.trim()) list(); });
  box.addEventListener("blur", close);
  box.addEventListener("keydown", (e) => {
    if (e.key === "ArrowDown" || e.key === "ArrowUp") {
      const step = e.key === "ArrowDown" ? 1 : -1;
      chosen = Math.max(0, Math.min(found.length - 1, chosen + step));
      mark();
    } else if (e.key === "Enter") take(chosen);
    else if (e.key === "Escape") close();
    else return;
    e.preventDefault();
  });
  addEventListener("keydown", (e) => {
    if (e.key !== "/" || /INPUT|SELECT|TEXTAREA/.test(document.activeElement?.tagName)) return;
    e.preventDefault();
    Q.by("graph").scrollIntoView();
    box.focus();
  });

  // Any element that names a layer leads to it.
  document.addEventListener("click", (e) => {
    const to = e.target.closest?.("[data-origin]");
    if (to) Q.go(to.dataset.origin);
  });
  Q.go = (origin) => {
    const i = Q.graph.find(origin);
    if (i < 0) return;
    Q.by("graph").scrollIntoView();
    Q.graph.select(i, true);
    canvas.focus({preventScroll: true});
  };
  return {};
})();
