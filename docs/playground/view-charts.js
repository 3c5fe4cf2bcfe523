// The curves over the steps: the losses of all racers; for each coordinate RMSProp's gradient, divisor and step.

import { RACERS } from "./state.js";
import { html, linearScale, logScale, say, signedLogScale, svg, whenSized } from "./view-parts.js";

/**
 * Draw one chart. `series` are lines with a value for each step, `rules` are horizontal lines with a text, `ends` are
 * names at the end of lines. `at` is the step that the page shows.
 */
function drawChart(
    host,
    { width, height, label, steps, from = 0, at, scale, series, rules = [], ends = [], spikes = [], onpick },
) {
    const margin = { left: 46, right: ends.length ? 94 : 12, top: 10, bottom: 24 };
    const [inner, tall] = [width - margin.left - margin.right, height - margin.top - margin.bottom];
    const x = (step) => margin.left + ((step - from) / Math.max(1, steps - from)) * inner;
    const y = (value) => margin.top + (1 - Math.min(Math.max(scale.at(value), -1), 2)) * tall;
    const id = `clip-${host.id}`;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    picture.append(
        svg("clipPath", { id }, svg("rect", { x: margin.left, y: margin.top - 4, width: inner + 4, height: tall + 8 })),
    );
    for (const tick of scale.ticks) {
        picture.append(
            svg("line", {
                class: tick === 0 ? "zero" : "grid",
                x1: margin.left,
                x2: margin.left + inner,
                y1: y(tick),
                y2: y(tick),
            }),
        );
        picture.append(
            svg("text", { class: "tick", x: margin.left - 7, y: y(tick) + 4, "text-anchor": "end", text: say(tick) }),
        );
    }
    for (const step of linearScale(from, steps, 4).ticks.filter((each) => Number.isInteger(each))) {
        picture.append(
            svg("text", { class: "tick", x: x(step), y: height - 6, "text-anchor": "middle", text: String(step) }),
        );
    }
    for (const step of spikes.filter((each) => each <= steps)) {
        picture.append(svg("path", { class: "spike", d: `M${x(step) - 4} ${margin.top - 8}h8l-4 8z` }));
        picture.append(
            svg("line", { class: "spike", x1: x(step), x2: x(step), y1: margin.top, y2: margin.top + tall }),
        );
    }
    const lines = svg("g", { "clip-path": `url(#${id})` });
    picture.append(lines);
    for (const { value, text } of rules) {
        if (scale.at(value) < -0.02 || scale.at(value) > 1.02) continue;
        lines.append(
            svg("line", { class: "rule", x1: margin.left, x2: margin.left + inner, y1: y(value), y2: y(value) }),
        );
        const low = y(value) - margin.top < 14;
        if (text)
            picture.append(
                svg("text", {
                    class: "rule",
                    x: margin.left + inner,
                    y: y(value) + (low ? 13 : -4),
                    "text-anchor": "end",
                    text,
                }),
            );
    }
    for (const { className, values, dots } of series) {
        const points = [...values.entries()].filter(([, value]) => value !== null && !Number.isNaN(value));
        const line = (some) => some.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
        lines.append(
            svg("polyline", { class: `later ${className}`, points: line(points.filter(([step]) => step >= at)) }),
        );
        lines.append(
            svg("polyline", { class: `path ${className}`, points: line(points.filter(([step]) => step <= at)) }),
        );
        const now = points.find(([step]) => step === at);
        if (now)
            lines.append(
                svg("circle", { class: `head ${className}`, cx: x(now[0]), cy: y(now[1]), r: dots ? 4.5 : 3 }),
            );
    }
    picture.append(
        svg("line", {
            class: "cursor",
            x1: x(Math.max(at, from)),
            x2: x(Math.max(at, from)),
            y1: margin.top - 4,
            y2: margin.top + tall,
        }),
    );
    let last = -Infinity;
    const sorted = ends.map((end) => ({ ...end, y: y(end.value) + 4 })).sort((a, b) => a.y - b.y);
    for (const end of sorted) last = end.y = Math.max(end.y, last + 15, margin.top + 6);
    let below = height - 6;
    for (const end of sorted.reverse()) below = (end.y = Math.min(end.y, below)) - 15;
    for (const end of sorted) {
        const left = margin.left + inner;
        picture.append(
            svg("line", {
                class: `lead ${end.className}`,
                x1: left + 2,
                x2: left + 10,
                y1: y(end.value),
                y2: end.y - 4,
            }),
        );
        picture.append(svg("text", { class: `end ${end.className}`, x: left + 13, y: end.y, text: end.text }));
    }
    const pick = (event) => {
        const box = picture.getBoundingClientRect();
        const step = from + ((((event.clientX - box.left) / box.width) * width - margin.left) / inner) * (steps - from);
        onpick(Math.min(Math.max(Math.round(step), from), steps));
    };
    picture.addEventListener("click", pick);
    host.replaceChildren(picture);
}

const finite = (values) => values.filter((value) => Number.isFinite(value));

/** The losses of all racers on a logarithmic axis. */
export function createLoss(root, actions) {
    let width = 0;
    let model = null;

    function draw() {
        if (!model || !width) return;
        const { state, result } = model;
        const names = Object.keys(RACERS).filter((name) => !state.hide.includes(name));
        const all = finite(names.flatMap((name) => result.racers[name].losses)).filter((value) => value > 0);
        const highest = Math.min(Math.max(...all, 1e-3), result.racers.rmsprop.losses[0] * 1e4 || 1e4);
        const lowest = Math.max(Math.min(...all, highest), highest * 1e-12);
        const scale = logScale(lowest, highest);
        const ends = names.map((name) => {
            const { losses, lost } = result.racers[name];
            const value = lost ? Infinity : losses.at(-1);
            return {
                className: name,
                value: Math.min(Math.max(value, lowest * 0.7), highest * 1.5),
                text: RACERS[name].title,
            };
        });
        const label = names.map((name) => `${RACERS[name].title} ${say(result.racers[name].losses.at(-1))}`).join(", ");
        drawChart(root, {
            width,
            height: Math.max(230, Math.min(300, width * 0.62)),
            steps: state.steps,
            at: state.step,
            scale,
            ends,
            spikes: state.spikes,
            onpick: actions.goTo,
            label: `Loss by step, on a logarithmic axis. After ${state.steps} steps: ${label}.`,
            series: names.reverse().map((name) => ({
                className: name,
                dots: name === "rmsprop",
                values: padded(result.racers[name], highest),
            })),
        });
    }

    whenSized(root, (size) => draw((width = size)));
    return { render: (next) => draw((model = next)) };
}

/** A racer's losses, and where it got lost, one number above all. */
const padded = ({ losses, lost }, highest) => (lost ? [...losses, highest * 1e30] : losses);

const ROWS = ["g", "root", "step"];

/** For each coordinate, three charts of RMSProp: gradient, divisor, step. */
export function createCharts(root, actions) {
    const cells = [0, 1].map((i) =>
        ROWS.map((key) => {
            const chart = html("div", { id: `chart-${key}-${i + 1}`, class: "chart" });
            const title = html("h3");
            root.append(
                html(
                    "div",
                    { class: "cell", style: `--coordinate: ${i + 1}; --what: ${ROWS.indexOf(key) + 1}` },
                    title,
                    chart,
                ),
            );
            return { title, chart };
        }),
    );
    let width = 0;
    let model = null;

    function draw() {
        if (!model || !width) return;
        const { state, result } = model;
        const { records } = result.racers.rmsprop;
        const { lr, beta, momentum } = state;
        const divisor = divisorText(state);
        const common = {
            width,
            height: width < 240 ? 120 : 150,
            steps: state.steps,
            from: 1,
            at: state.step,
            spikes: state.spikes,
            onpick: actions.goTo,
        };
        for (const i of [0, 1]) {
            const name = ["x₁", "x₂"][i];
            const take = (pick) => records.map((record) => (record ? pick(record) : null));
            const g = take((record) => record.g[i]);
            const size = g.map((value) => value && Math.abs(value));
            const root = take((record) => record.root[i]);
            const steps = take((record) => record.after.w[i] - record.before.w[i]);

            const [cellG, cellRoot, cellStep] = cells[i];
            cellG.title.replaceChildren(html("i", { text: "g" }), ` of ${name}: the gradient`);
            drawChart(cellG.chart, {
                ...common,
                scale: scaleOf(g),
                series: [{ className: "rmsprop", values: g, dots: true }],
                label: `Gradient of ${name} by step.`,
            });

            const own = width < 240 ? "" : ` of ${name}: the divisor`;
            cellRoot.title.replaceChildren(
                html("i", { text: divisor }),
                own,
                html("span", { class: "key", text: "|g|" }),
            );
            drawChart(cellRoot.chart, {
                ...common,
                scale: scaleOfSizes(root, size),
                label: `${divisor} of ${name} by step, beside the size of the gradient.`,
                series: [
                    { className: "size", values: size },
                    { className: "rmsprop", values: root, dots: true },
                ],
            });

            cellStep.title.replaceChildren(html("i", { text: "Δx" }), ` of ${name}: the step`);
            const bound =
                momentum === 0 &&
                state.initial_square_avg === 0 &&
                !state.centered &&
                !state.bias_correction &&
                beta < 1
                    ? lr / Math.sqrt(1 - beta)
                    : null;
            const most = Math.max(...finite(steps).map(Math.abs), 1e-12);
            const text = width < 240 ? "η/√(1−β)" : "at most η/√(1−β)";
            const rules =
                bound && bound < most * 1.6
                    ? [
                          { value: bound, text },
                          { value: -bound, text: "" },
                      ]
                    : [];
            const reach = Math.max(most, rules.length ? bound : 0) * 1.08;
            const scale = most > 1e6 * lr ? scaleOf(steps) : linearScale(-reach, reach);
            drawChart(cellStep.chart, {
                ...common,
                scale,
                rules,
                series: [{ className: "rmsprop", values: steps, dots: true }],
                label: `Step of ${name} by step.`,
            });
        }
    }

    whenSized(cells[0][0].chart, (size) => draw((width = size)));
    return { render: (next) => draw((model = next)) };
}

/** A scale for numbers of both signs: linear, or logarithmic where one of them is far larger than most. */
function scaleOf(values) {
    const numbers = finite(values);
    const sizes = numbers
        .map(Math.abs)
        .filter((x) => x > 0)
        .sort((a, b) => a - b);
    const middle = sizes[Math.floor(sizes.length / 2)] ?? 1;
    const most = sizes.at(-1) ?? 1;
    const [low, high] = [Math.min(0, ...numbers), Math.max(0, ...numbers)];
    if (most < 30 * middle || numbers[0] === most || numbers[0] === -most) return linearScale(low, high);
    const small = Math.max(middle, most * 1e-7);
    return signedLogScale(Math.min(low, -small), Math.max(high, small), small);
}

/** A logarithmic scale for the divisors, and for the sizes of gradients as far as they are not too far from those. */
function scaleOfSizes(divisors, sizes) {
    const own = finite(divisors).filter((x) => x > 0);
    const [low, high] = own.length ? [Math.min(...own), Math.max(...own)] : [1e-8, 1];
    const near = finite(sizes).filter((x) => x > low * 1e-5 && x < high * 1e9);
    return logScale(Math.min(low, ...near), Math.max(high, ...near));
}

/** The divisor in the letters of the settings: √v + ε, √(v̂ + ε), √(v − m²) + ε … */
export function divisorText({ centered, bias_correction: corrected, eps_inside_sqrt: inside }) {
    const v = corrected ? "v̂" : "v";
    const under = centered ? `${v} − ${corrected ? "m̂" : "m"}²` : v;
    if (inside) return `√(${under} + ε)`;
    return `${centered ? `√(${under})` : `√${v}`} + ε`;
}
