// The page's data as they were before they were packed.
Q.unpack = (() => {
  const column = (c) => Array.isArray(c) ? c : c.at.map((i) => i < 0 ? null : c.words[i]);
  const rows = (packed) => {
    const columns = Object.entries(packed).map(([key, c]) => [key, column(c)]);
    const count = columns.length ? columns[0][1].length : 0;
    return Array.from({length: count}, (_, i) => {
      const row = {};
      for (const [key, values] of columns) if (values[i] != null) row[key] = values[i];
      return row;
    });
  };
  const D = Q.data, N = D.nodes, name = (i) => D.names[i];
  D.layers = rows(D.layers);
  D.tensors = rows(D.tensors);
  for (const t of D.tensors) {
    t.name = name(t.name);
    if (t.same_as != null) t.same_as = name(t.same_as);
  }
  for (const key of ["op", "shape"]) N[key] = column(N[key]);
  N.reads = N.reads.map((all) => all.map(name));
  N.writes = N.writes.map((all) => all.map(name));
  N.origin = N.origin.map((o, i) => o ?? D.layers[N.layer[i]].origin);
})();
