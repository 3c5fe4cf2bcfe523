// The map: shaded heights with contour lines, the paths, and the start, which a finger, a mouse or the keyboard moves.

import { RACERS } from "./state.js";
import { html, say, svg, whenSized } from "./view-parts.js";

const ASPECT = 4 / 3;
const COLUMNS = 112;
const ROWS = 84;
const LEVELS = 11;
const ORDER = Object.keys(RACERS).reverse(); // RMSProp is drawn last, above the others

export function createMap(root, text, actions) {
    const canvas = html("canvas", { width: COLUMNS, height: ROWS, "aria-hidden": "true" });
    const picture = svg("svg", { role: "img" });
    const handle = html("button", {
        type: "button",
        class: "handle",
        role: "slider",
        "aria-roledescription": "start, in two directions",
        "aria-label": "Start",
        "aria-describedby": "handle-help",
        "aria-valuemin": -100,
        "aria-valuemax": 100,
    });
    const help = html("span", {
        id: "handle-help",
        class: "hidden",
        text: "Arrow keys move the start by 0.1, with Shift by 1.",
    });
    const legend = html("p", { class: "hint", text: "Drag the ring, or click where the start should be." });
    const frame = html("div", { class: "frame" }, canvas, picture, handle);
    root.append(frame, help);
    root.after(legend);

    let width = 0;
    let model = null;
    let drawn = ""; // which terrain the canvas shows
    let view = null;

    const height = () => Math.round(width / ASPECT);
    const toPixels = ([x, y]) => [
        ((x - view.x) / (view.half * ASPECT) + 1) * (width / 2),
        (1 - (y - view.y) / view.half) * (height() / 2),
    ];
    const fromPointer = (event) => {
        const box = frame.getBoundingClientRect();
        return [
            view.x + (((event.clientX - box.left) / box.width) * 2 - 1) * view.half * ASPECT,
            view.y + (1 - ((event.clientY - box.top) / box.height) * 2) * view.half,
        ];
    };

    function moveTo([x, y]) {
        const inside = (value, middle, half) => Math.min(Math.max(value, middle - half * 0.98), middle + half * 0.98);
        const round = (value) => Math.round(value * 100) / 100;
        actions.change({ x1: round(inside(x, view.x, view.half * ASPECT)), x2: round(inside(y, view.y, view.half)) });
    }

    let dragging = false;
    handle.addEventListener("pointerdown", (event) => {
        dragging = true;
        handle.setPointerCapture(event.pointerId);
    });
    handle.addEventListener("pointermove", (event) => {
        if (dragging) moveTo(fromPointer(event));
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
        handle.addEventListener(end, () => (dragging = false));
    }
    picture.addEventListener("click", (event) => moveTo(fromPointer(event)));
    handle.addEventListener("keydown", (event) => {
        const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [
            0, 0,
        ];
        if (!dx && !dy) return;
        event.preventDefault();
        const size = event.shiftKey ? 1 : 0.1;
        const { x1, x2 } = actions.current(); // which may be newer than what is drawn
        moveTo([x1 + dx * size, x2 + dy * size]);
    });

    // ---- Heights ----

    function drawHeights(step) {
        const { terrain } = model.result;
        const key = [
            terrain.name,
            terrain.angle,
            terrain.moves ? step : 0,
            width,
            getComputedStyle(frame).colorScheme,
            theme(),
        ].join();
        if (key === drawn) return;
        drawn = key;
        const values = new Float64Array((COLUMNS + 1) * (ROWS + 1));
        for (let j = 0; j <= ROWS; j++) {
            for (let i = 0; i <= COLUMNS; i++) {
                const x = view.x + ((i / COLUMNS) * 2 - 1) * view.half * ASPECT;
                const y = view.y + (1 - (j / ROWS) * 2) * view.half;
                values[j * (COLUMNS + 1) + i] = terrain.loss([x, y], step);
            }
        }
        const sorted = values.slice().sort();
        shade(values, sorted);
        const contours = picture.querySelector(".contours");
        contours.replaceChildren();
        for (let k = 1; k <= LEVELS; k++) {
            const level = sorted[Math.floor((k / (LEVELS + 1)) ** 1.5 * (sorted.length - 1))];
            contours.append(svg("path", { d: contour(values, level) }));
        }
    }

    const theme = () => document.documentElement.dataset.theme ?? matchMedia("(prefers-color-scheme: dark)").matches;

    /** Colour each cell by its rank among all heights, so that every landscape has the same range of shades. */
    function shade(values, sorted) {
        const context = canvas.getContext("2d");
        const image = context.createImageData(COLUMNS, ROWS);
        const style = getComputedStyle(frame);
        const [low, high] = [style.color, style.outlineColor].map((text) => text.match(/[\d.]+/g).map(Number));
        for (let j = 0; j < ROWS; j++) {
            for (let i = 0; i < COLUMNS; i++) {
                const t = rank(sorted, values[j * (COLUMNS + 1) + i]) ** 0.65;
                const at = (j * COLUMNS + i) * 4;
                for (let c = 0; c < 3; c++) image.data[at + c] = low[c] + (high[c] - low[c]) * t;
                image.data[at + 3] = 255;
            }
        }
        context.putImageData(image, 0, 0);
    }

    /** The line at one height, by marching squares. */
    function contour(values, level) {
        const [cellX, cellY] = [width / COLUMNS, height() / ROWS];
        const parts = [];
        for (let j = 0; j < ROWS; j++) {
            for (let i = 0; i < COLUMNS; i++) {
                const at = j * (COLUMNS + 1) + i;
                const corners = [values[at], values[at + 1], values[at + COLUMNS + 2], values[at + COLUMNS + 1]];
                const above = corners.map((value) => value > level);
                if (above.every((each) => each === above[0])) continue;
                const points = [];
                for (let side = 0; side < 4; side++) {
                    const [p, q] = [side, (side + 1) % 4];
                    if (above[p] === above[q]) continue;
                    const t = (level - corners[p]) / (corners[q] - corners[p]);
                    const [px, py] = [
                        [0, 0],
                        [1, 0],
                        [1, 1],
                        [0, 1],
                    ][p];
                    const [qx, qy] = [
                        [0, 0],
                        [1, 0],
                        [1, 1],
                        [0, 1],
                    ][q];
                    points.push([(i + px + (qx - px) * t) * cellX, (j + py + (qy - py) * t) * cellY]);
                }
                for (let k = 0; k + 1 < points.length; k += 2) {
                    const [[ax, ay], [bx, by]] = [points[k], points[k + 1]];
                    parts.push(`M${ax.toFixed(1)} ${ay.toFixed(1)}L${bx.toFixed(1)} ${by.toFixed(1)}`);
                }
            }
        }
        return parts.join("");
    }

    // ---- Paths ----

    const groups = {};

    function build() {
        picture.setAttribute("viewBox", `0 0 ${width} ${height()}`);
        picture.replaceChildren(
            svg("g", { class: "contours" }),
            svg("g", { class: "ticks" }),
            svg("g", { class: "minima" }),
        );
        for (const name of ORDER) {
            groups[name] = svg("g", { class: `racer ${name}` });
            picture.append(groups[name]);
        }
        picture.append(svg("g", { class: "labels" }));
        drawn = "";
    }

    function drawTicks() {
        const ticks = picture.querySelector(".ticks");
        ticks.replaceChildren();
        const every = view.half > 3 ? 2 : 1;
        for (
            let x = Math.ceil((view.x - view.half * ASPECT) / every) * every;
            x < view.x + view.half * ASPECT;
            x += every
        ) {
            const [px] = toPixels([x, 0]);
            if (px < 34 || px > width - 34) continue;
            ticks.append(svg("line", { x1: px, x2: px, y1: height(), y2: height() - 4 }));
            ticks.append(svg("text", { x: px, y: height() - 8, "text-anchor": "middle", text: say(x) }));
        }
        for (let y = Math.ceil((view.y - view.half) / every) * every; y < view.y + view.half; y += every) {
            const [, py] = toPixels([0, y]);
            if (py < 22 || py > height() - 30) continue;
            ticks.append(svg("line", { x1: 0, x2: 4, y1: py, y2: py }));
            ticks.append(svg("text", { x: 8, y: py + 4, text: say(y) }));
        }
        ticks.append(svg("text", { class: "axis", x: width - 8, y: height() - 8, "text-anchor": "end", text: "x₁" }));
        ticks.append(svg("text", { class: "axis", x: 8, y: 18, text: "x₂" }));
    }

    /** Pixels of a point of a path. A path that leaves the map goes on outside of it, though not for ever. */
    function place(point) {
        return toPixels(point).map((each) => Math.min(Math.max(each, -20 * width), 20 * width));
    }

    function drawRacer(name, at) {
        const { path } = model.result.racers[name];
        const shown = Math.min(Math.floor(at), path.length - 1);
        const points = path.map(place);
        const head = [...points[shown]];
        const next = points[shown + 1];
        if (next && at > shown) [0, 1].forEach((c) => (head[c] += (next[c] - head[c]) * (at - shown)));
        const line = (some) => some.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
        const group = groups[name];
        group.replaceChildren();
        if (model.state.hide.includes(name)) return null;
        if (name === "rmsprop") group.append(svg("polyline", { class: "later", points: line(points.slice(shown)) }));
        group.append(svg("polyline", { class: "halo", points: line([...points.slice(0, shown + 1), head]) }));
        group.append(svg("polyline", { class: "path", points: line([...points.slice(0, shown + 1), head]) }));
        if (name === "rmsprop" && points.length <= 121) {
            for (const [x, y] of points.slice(1, shown + 1))
                group.append(svg("circle", { class: "dot", cx: x, cy: y, r: 2.4 }));
        }
        group.append(svg("circle", { class: "head", cx: head[0], cy: head[1], r: name === "rmsprop" ? 6 : 4.5 }));
        return head;
    }

    /** Write names beside the heads, as far as there is room. */
    function drawLabels(heads) {
        const labels = picture.querySelector(".labels");
        labels.replaceChildren();
        const taken = [];
        const [startX, startY] = toPixels([model.state.x1, model.state.x2]);
        taken.push([startX - 14, startY - 14, startX + 14, startY + 14]);
        for (const name of Object.keys(RACERS)) {
            const head = heads[name];
            if (!head || head[0] < 0 || head[0] > width || head[1] < 0 || head[1] > height()) continue;
            const wide = RACERS[name].title.length * 8.6 + 4;
            for (const [dx, dy] of [
                [10, -9],
                [10, 18],
                [-10 - wide, -9],
                [-10 - wide, 18],
            ]) {
                const box = [head[0] + dx, head[1] + dy - 12, head[0] + dx + wide, head[1] + dy + 3];
                if (box[0] < 4 || box[2] > width - 4 || box[1] < 4 || box[3] > height() - 22) continue;
                if (
                    taken.some(
                        (other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1],
                    )
                )
                    continue;
                taken.push(box);
                labels.append(svg("text", { class: name, x: box[0], y: head[1] + dy, text: RACERS[name].title }));
                break;
            }
        }
    }

    function draw(at) {
        if (!model || !width) return;
        const { terrain, racers } = model.result;
        const step = Math.floor(at);
        view = terrain.view;
        drawHeights(step);
        drawTicks();
        const minima = picture.querySelector(".minima");
        minima.replaceChildren();
        for (const point of terrain.minima(step)) {
            const [x, y] = toPixels(point);
            minima.append(svg("path", { d: `M${x - 6} ${y}h12M${x} ${y - 6}v12` }));
        }
        const heads = {};
        for (const name of ORDER) heads[name] = drawRacer(name, at);
        drawLabels(heads);
        const [x, y] = toPixels([model.state.x1, model.state.x2]);
        handle.style.left = `${(x / width) * 100}%`;
        handle.style.top = `${(y / height()) * 100}%`;
        handle.setAttribute("aria-valuenow", model.state.x1);
        handle.setAttribute("aria-valuetext", `x₁ ${say(model.state.x1)}, x₂ ${say(model.state.x2)}`);
        const end = racers.rmsprop.path[Math.min(step, racers.rmsprop.path.length - 1)];
        picture.setAttribute(
            "aria-label",
            `${terrain.title}, ${terrain.angle} degrees. After ${step} steps from ` +
                `(${say(model.state.x1)}, ${say(model.state.x2)}), RMSProp is at (${say(end[0])}, ${say(end[1])}).`,
        );
    }

    whenSized(frame, (size) => {
        width = size;
        build();
        draw(model?.state.step);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(model.state.step));

    return {
        render(next) {
            model = next;
            const { terrain } = model.result;
            text.replaceChildren(
                html("h2", { text: terrain.title }),
                html("p", {
                    class: "formula",
                    text: `${terrain.formula}${terrain.angle ? `, turned by ${terrain.angle}°` : ""}`,
                }),
                html("p", { text: terrain.text }),
            );
            draw(model.state.step);
        },
        draw,
    };
}

/** Where a value stands among sorted ones, from 0 to 1. */
function rank(sorted, value) {
    let [low, high] = [0, sorted.length - 1];
    while (low < high) {
        const middle = (low + high) >> 1;
        if (sorted[middle] < value) low = middle + 1;
        else high = middle;
    }
    return low / (sorted.length - 1);
}
