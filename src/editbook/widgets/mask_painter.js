// The page's side of the mask painter: a canvas at the picture's own resolution, stretched, and a mask over it.

const TOOLS = { draw: "draw", erase: "erase", click: "take object" };

function render({ model, el }) {
  const [width, height] = model.get("size");
  const side = model.get("side");
  let mask = read();
  let history = [];
  let tool = "draw";
  let last = null;

  const make = (tag, attributes = {}, text = "") => {
    const node = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
    node.textContent = text;
    return node;
  };
  const root = make("div", { class: "mask-painter" });
  const bar = make("div", { class: "bar", role: "toolbar", "aria-label": "tools of the mask painter" });
  const canvas = make("canvas", { role: "img", "aria-label": "the picture, with the mask in red", tabindex: "0" });
  canvas.width = width;
  canvas.height = height;
  canvas.style.width = `${side}px`;
  canvas.style.height = `${Math.round((side * height) / width)}px`;
  const note = make("div", { class: "note", role: "status" });
  const names = Object.keys(TOOLS).filter((name) => name !== "click" || model.get("clicks"));
  const tools = names.map((name) => {
    const button = make("button", { type: "button", "data-tool": name }, TOOLS[name]);
    button.addEventListener("click", () => {
      tool = name;
      refresh();
    });
    return button;
  });
  const brush = make("input", { type: "range", min: "1", max: String(Math.max(2, Math.round(width / 4))), step: "1" });
  brush.value = String(Math.max(1, Math.round(width / 16)));
  const label = make("label", {}, "brush ");
  label.append(brush);
  const undo = make("button", { type: "button", "data-do": "undo" }, "undo");
  const clear = make("button", { type: "button", "data-do": "clear" }, "clear");
  const invert = make("button", { type: "button", "data-do": "invert" }, "invert");
  bar.append(...tools, label, undo, clear, invert);
  root.append(bar, canvas, note);
  el.append(root);

  const picture = new Image();
  picture.onload = refresh;
  picture.src = model.get("picture");

  function read() {
    const view = model.get("mask");
    return new Uint8Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
  }

  function refresh() {
    tools.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.tool === tool)));
    const draw = canvas.getContext("2d");
    draw.clearRect(0, 0, width, height);
    draw.drawImage(picture, 0, 0, width, height);
    const pixels = draw.getImageData(0, 0, width, height);
    mask.forEach((value, k) => {
      if (!value) return;
      pixels.data[4 * k] = 0.4 * pixels.data[4 * k] + 0.6 * 235;
      pixels.data[4 * k + 1] = 0.4 * pixels.data[4 * k + 1] + 0.6 * 60;
      pixels.data[4 * k + 2] = 0.4 * pixels.data[4 * k + 2] + 0.6 * 60;
    });
    draw.putImageData(pixels, 0, 0);
    const share = mask.reduce((sum, value) => sum + (value > 0), 0) / mask.length;
    note.textContent = `${(100 * share).toFixed(1)} % of the picture. ${model.get("message")}`;
  }

  function keep() {
    history.push(mask.slice());
    history = history.slice(-30);
  }

  function save() {
    model.set("mask", new DataView(mask.buffer.slice(0)));
    model.set("message", "");
    model.save_changes();
    refresh();
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  }

  // Every pixel whose centre is within the brush of the segment from a to b.
  function stroke(a, b) {
    const radius = Number(brush.value) / 2;
    const value = tool === "draw" ? 255 : 0;
    const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
    const length = dx * dx + dy * dy;
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const [px, py] = [x + 0.5 - a[0], y + 0.5 - a[1]];
        const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
        if (Math.hypot(px - along * dx, py - along * dy) <= radius) mask[y * width + x] = value;
      }
    }
  }

  canvas.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    const at = place(event);
    keep();
    if (tool === "click") {
      model.send({ kind: "click", x: Math.floor(at[0]), y: Math.floor(at[1]) });
      return;
    }
    model.send({ kind: "draw" });
    last = at;
    stroke(at, at);
    refresh();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (last === null) return;
    const at = place(event);
    stroke(last, at);
    last = at;
    refresh();
  });
  const lift = () => {
    if (last === null) return;
    last = null;
    save();
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  undo.addEventListener("click", () => {
    if (!history.length) return;
    mask = history.pop();
    save();
  });
  clear.addEventListener("click", () => {
    keep();
    mask = new Uint8Array(mask.length);
    save();
  });
  invert.addEventListener("click", () => {
    keep();
    mask = mask.map((value) => (value ? 0 : 255));
    save();
  });

  const fromKernel = () => {
    mask = read();
    refresh();
  };
  model.on("change:mask", fromKernel);
  model.on("change:message", refresh);
  return () => {
    model.off("change:mask", fromKernel);
    model.off("change:message", refresh);
  };
}

export default { render };
