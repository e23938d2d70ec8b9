// Numbers and elements as the page writes them.
Q.micros = (ns) => ns == null ? "–" : (ns / 1000).toLocaleString("en", {maximumFractionDigits: ns < 1e5 ? 1 : 0});
Q.number = (v, digits = 4) => v == null ? "–" : String(Number(v.toPrecision(digits)));
Q.percent = (v) => v == null ? "–" : v === 0 ? "none" : v < 0.0001 ? "< 0.01 %" : `${v < 0.1 ? (100 * v).toPrecision(2) : (100 * v).toFixed(0)} %`;
Q.EXACT = 120; // dB: float arithmetic in another order, or no difference at all
Q.db = (v) => v >= Q.EXACT ? "exact" : v.toFixed(1);
Q.count = (v) => v >= 1e9 ? `${(v / 1e9).toPrecision(3)} G` : v >= 1e6 ? `${(v / 1e6).toPrecision(3)} M` : v >= 1e3 ? `${(v / 1e3).toPrecision(3)} k` : String(v);
Q.by = (id) => document.getElementById(id);

// An element with text and children; text is never read as HTML, since names of tensors are any text.
Q.make = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((c) => c != null));
  return made;
};

// One word of a precision -> the class that colours it.
Q.kind = (precision) => !precision ? "other" : precision === "float" ? "float" : precision.includes("dynamic") ? "dynamic" : "int8";
