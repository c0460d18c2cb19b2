
"use strict";
// All that is shown is in the page already, as text. This adds the large frame with its grid, and moves by keyboard.
(() => {
  const svg = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const html = (name, className, text) => {
    const node = document.createElement(name);
    node.className = className;
    if (text) node.textContent = text;
    return node;
  };
  const bounded = (value, most) => Math.max(0, Math.min(most, value));

  const lines = (count, line, step) => Array.from({length: count / step + 1}, (_, place) => line(place * step)).join("");

  // The position in the prompt of a frame's token, from "first+length" of each run of its tokens.
  const positionOf = (runs, place) => {
    for (const run of runs ? runs.split(" ") : []) {
      const [first, length] = run.split("+").map(Number);
      if (length > place) return first + place;
      place -= length;
    }
    return "not known";
  };

  const addViewer = (box) => {
    const [height, width, merge, rowBlock, patch] = ["height", "width", "merge", "block", "patch"].map((key) => Number(box.dataset[key]));
    const buttons = [...box.querySelectorAll("button.frame")];
    if (!buttons.length) return;
    const stage = html("div", "stage"), image = document.createElement("img"), figure = html("figure", "viewer");
    const overlay = svg("svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", tabindex: "0", role: "application",
      "aria-label": "Patch grid: arrow keys move from patch to patch"});
    const grid = (step) => lines(height, (y) => `M0 ${y}H${width}`, step) + lines(width, (x) => `M${x} 0V${height}`, step);
    const drawn = {patches: svg("path", {class: "patches", d: grid(1)}), blocks: svg("path", {class: "blocks", d: grid(merge)})};
    const block = svg("rect", {class: "block", width: merge, height: merge}), one = svg("rect", {class: "one", width: 1, height: 1});
    const detail = html("p", "detail"), controls = html("div", "controls");
    detail.setAttribute("aria-live", "polite");
    overlay.append(drawn.patches, drawn.blocks, block, one);
    stage.append(image, overlay);
    for (const [name, text] of [["patches", `patches, ${patch} × ${patch} px`], ["blocks", `tokens, ${merge} × ${merge} patches`]]) {
      const label = html("label", ""), input = document.createElement("input");
      input.type = "checkbox";
      input.checked = true;
      input.addEventListener("change", () => { drawn[name].style.display = input.checked ? "" : "none"; });
      label.append(input, " " + text);
      controls.append(label);
    }
    figure.append(stage, controls, detail);
    box.append(figure);
    stage.style.width = `${Math.max(width * patch, Math.min(760, width * patch * 3))}px`;

    let current = 0, row = 0, column = 0;
    const tell = () => {
      const button = buttons[current], blockRow = Math.floor(row / merge), blockColumn = Math.floor(column / merge);
      const place = blockRow * (width / merge) + blockColumn;
      const inRows = Math.floor(row / rowBlock) * (width / rowBlock) + Math.floor(column / rowBlock);
      const inBlock = (row % rowBlock) * rowBlock + column % rowBlock;
      one.setAttribute("x", column);
      one.setAttribute("y", row);
      block.setAttribute("x", blockColumn * merge);
      block.setAttribute("y", blockRow * merge);
      const tensorRow = Number(button.dataset.row) + inRows * rowBlock * rowBlock + inBlock;
      const token = positionOf(button.dataset.tokens, place);
      detail.textContent = `temporal patch ${button.dataset.group} · patch row ${row}, column ${column} · row ${tensorRow} of the pixel tensor · token at position ${token}`;
    };
    const show = (place, focus) => {
      current = place;
      buttons.forEach((button, other) => {
        button.setAttribute("aria-pressed", String(other === place));
        button.tabIndex = other === place ? 0 : -1;
      });
      const thumbnail = buttons[place].querySelector("img");
      image.src = thumbnail.src;
      image.alt = `${thumbnail.alt}, enlarged`;
      if (focus) buttons[place].focus();
      tell();
    };
    buttons.forEach((button, place) => {
      button.addEventListener("click", () => show(place, false));
      button.addEventListener("keydown", (event) => {
        const to = {ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: buttons.length - 1}[event.key];
        if (to === undefined) return;
        event.preventDefault();
        show(bounded(to, buttons.length - 1), true);
      });
    });
    overlay.addEventListener("pointermove", (event) => {
      const area = overlay.getBoundingClientRect();
      column = bounded(Math.floor((event.clientX - area.left) / area.width * width), width - 1);
      row = bounded(Math.floor((event.clientY - area.top) / area.height * height), height - 1);
      tell();
    });
    overlay.addEventListener("keydown", (event) => {
      const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (!step) return;
      event.preventDefault();
      row = bounded(row + step[0], height - 1);
      column = bounded(column + step[1], width - 1);
      tell();
    });
    show(0, false);
  };

  const addTokenMap = (map, detail) => {
    const tokens = [...map.children];
    let current = -1;
    const choose = (place) => {
      if (current !== -1) tokens[current].setAttribute("aria-selected", "false");
      current = place;
      tokens[place].setAttribute("aria-selected", "true");
      map.setAttribute("aria-activedescendant", tokens[place].id);
      detail.textContent = tokens[place].title;
    };
    map.addEventListener("pointerover", (event) => {
      const token = event.target.closest(".t");
      if (token) detail.textContent = token.title;
    });
    map.addEventListener("click", (event) => {
      const token = event.target.closest(".t");
      if (token) choose(tokens.indexOf(token));
    });
    const goToFrame = (token) => {
      const {item, position} = token ? token.dataset : {};
      const button = item && document.querySelector(`#item${item} button.frame[data-token="${position}"]`);
      if (!button) return;
      button.click();
      button.focus();
    };
    map.addEventListener("dblclick", (event) => goToFrame(event.target.closest(".t")));
    map.addEventListener("focus", () => { if (current === -1) choose(0); });
    map.addEventListener("keydown", (event) => {
      if (event.key === "Enter") goToFrame(tokens[current]);
      const to = {ArrowLeft: current - 1, ArrowRight: current + 1, ArrowUp: current - 10, ArrowDown: current + 10,
        Home: 0, End: tokens.length - 1}[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(bounded(to, tokens.length - 1));
      tokens[current].scrollIntoView({block: "nearest"});
    });
  };

  document.querySelectorAll(".frames").forEach(addViewer);
  const map = document.getElementById("map");
  if (map) addTokenMap(map, document.getElementById("token"));
})();

