// Light and dark: as the system says, until the reader says otherwise.
Q.theme = {
  watchers: [],
  css: (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(),
  dark: () => document.documentElement.dataset.theme === "dark",
  stored() {
    try { return localStorage.getItem("qcompile-theme"); } catch { return null; } // storage may be forbidden
  },
  set(theme, keep) {
    document.documentElement.dataset.theme = theme;
    Q.by("theme").textContent = theme === "dark" ? "Light" : "Dark";
    if (keep) {
      try { localStorage.setItem("qcompile-theme", theme); } catch { /* then it is not remembered */ }
    }
    for (const act of Q.theme.watchers) act();
  },
  start() {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const wanted = () => Q.theme.stored() || (system.matches ? "dark" : "light");
    Q.theme.set(wanted(), false);
    system.addEventListener("change", () => Q.theme.set(wanted(), false));
    Q.by("theme").addEventListener("click", () => Q.theme.set(Q.theme.dark() ? "light" : "dark", true));
    // Paper is white, and what is folded cannot be opened on it.
    let before = null;
    addEventListener("beforeprint", () => {
      before = Q.theme.dark();
      Q.theme.set("light", false);
      for (const one of document.querySelectorAll("details[data-print]")) one.open = true;
    });
    addEventListener("afterprint", () => { if (before) Q.theme.set("dark", false); });
  },
};
