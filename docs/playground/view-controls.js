// The controls: landscape, start, RMSProp's settings, the other racers, and what plays the steps.

import { DIALECTS } from "./dialects.js";
import { LANDSCAPES } from "./landscapes.js";
import { FIELDS, MOST_STEPS, RACERS, SPEEDS, SPIKES, readNumber, writeNumber } from "./state.js";
import { html, say } from "./view-parts.js";

const decades = (from, to) => {
    const values = [];
    for (let k = from; k < to; k++) for (const digit of [1, 1.5, 2, 3, 4, 5, 7]) values.push(Number(`${digit}e${k}`));
    return [...values, Number(`1e${to}`)];
};
const evenly = (from, to, by) =>
    Array.from({ length: Math.round((to - from) / by) + 1 }, (_, k) => Number((from + k * by).toFixed(6)));

// Where a slider stops. Any other number in the range can be typed beside it.
const STOPS = {
    angle: evenly(0, 180, 5),
    lr: decades(-3, 1),
    beta: [...evenly(0, 0.8, 0.1), 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1],
    eps: [0, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1, 3, 10],
    momentum: [...evenly(0, 0.9, 0.1), 0.95, 0.98, 0.99],
    initial_square_avg: [0, 1e-3, 1e-2, 0.1, 0.3, 1, 3, 10, 100],
    clip_value: [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, null],
    steps: evenly(10, MOST_STEPS, 10),
};

// The name of each setting, and what it does, in a few words.
const TEXTS = {
    angle: ["Rotation", "in degrees"],
    lr: ["η", "learning rate"],
    beta: ["β", "decay: how long it remembers"],
    eps: ["ε", "added to the divisor"],
    momentum: ["μ", "momentum"],
    initial_square_avg: ["v₀", "where v starts"],
    clip_value: ["Clip", "limit of each |g|"],
    steps: ["Steps", "of the run"],
    centered: ["Centered", "v − m², the variance of g, under the root"],
    bias_correction: ["Bias correction", "v / (1 − βᵗ), as Adam does"],
    eps_inside_sqrt: ["ε inside the root", "√(v + ε) in the place of √v + ε"],
    lr_in_momentum: ["η inside the buffer", "only with momentum, and only if η changes"],
    nesterov: ["Nesterov", "only with momentum: looks one step ahead"],
};

/** A field in which a number is typed. A wrong one is said beside it, and changes nothing. */
function numberField(name, label, write) {
    const fault = html("span", { class: "fault", role: "alert" });
    const field = html("input", {
        type: "text",
        inputmode: "decimal",
        "aria-label": label,
        size: 7,
        autocomplete: "off",
        spellcheck: "false",
        onchange: () => {
            try {
                write(field.value.trim());
                fault.textContent = "";
                field.removeAttribute("aria-invalid");
            } catch (error) {
                fault.textContent = error.message;
                field.setAttribute("aria-invalid", "true");
            }
        },
    });
    return {
        field,
        fault,
        show(text) {
            if (field.getAttribute("aria-invalid") && document.activeElement === field) return;
            field.value = text;
            fault.textContent = "";
            field.removeAttribute("aria-invalid");
        },
    };
}

function slider(name, actions) {
    const [symbol, words] = TEXTS[name];
    const stops = STOPS[name];
    const theirs = html("span", { class: "theirs" });
    const number = numberField(name, `${symbol}, ${words}`, (text) =>
        actions.change({ [name]: FIELDS[name].read(name, text) }),
    );
    const fail = (error) => {
        number.fault.textContent = error.message;
        range.value = range.dataset.shown;
    };
    const range = html("input", {
        type: "range",
        min: 0,
        max: stops.length - 1,
        step: 1,
        id: `slider-${name}`,
        "aria-label": `${symbol}, ${words}`,
        oninput: () => {
            try {
                actions.change({ [name]: stops[range.value] });
            } catch (error) {
                fail(error);
            }
        },
    });
    number.field.id = `number-${name}`;
    const row = html(
        "div",
        { class: "slider" },
        html(
            "label",
            { for: range.id },
            html("b", { text: symbol }),
            html("span", { class: "words" }, ` ${words}`, theirs),
        ),
        number.field,
        range,
        number.fault,
    );
    return {
        row,
        render({ state }) {
            const value = state[name];
            const distance = (stop) => Math.abs(place(stop) - place(value));
            const nearest = stops.reduce((best, stop, k) => (distance(stop) < distance(stops[best]) ? k : best), 0);
            range.value = range.dataset.shown = nearest;
            range.setAttribute("aria-valuetext", writeNumber(value));
            range.style.setProperty("--filled", `${(nearest / (stops.length - 1)) * 100}%`);
            number.show(writeNumber(value));
            const argument = state.dialect && DIALECTS[state.dialect].takes[name]?.[0];
            theirs.textContent = argument ? `: ${argument}` : "";
        },
    };

    /** A number by which stops are compared: small ones by their exponent, decays by what is left to 1. */
    function place(value) {
        if (value === null) return 1e3;
        if (name === "angle" || name === "steps") return value;
        if (name === "beta" || name === "momentum") return -Math.log(1.0001 - Math.min(value, 1));
        return Math.log(value + 1e-13);
    }
}

function toggle(name, actions) {
    const [title, words] = TEXTS[name];
    const fault = html("span", { class: "fault", role: "alert" });
    const box = html("input", {
        type: "checkbox",
        role: "switch",
        id: `switch-${name}`,
        onchange: () => {
            try {
                fault.textContent = "";
                actions.change({ [name]: box.checked });
            } catch (error) {
                fault.textContent = error.message;
                box.checked = !box.checked;
            }
        },
    });
    const row = html(
        "div",
        { class: "switch" },
        box,
        html("label", { for: box.id }, html("b", { text: title }), html("span", { class: "words", text: words })),
        fault,
    );
    return {
        row,
        render({ state }) {
            box.checked = state[name];
            box.disabled = (name === "nesterov" || name === "lr_in_momentum") && state.momentum === 0;
            row.classList.toggle("off", box.disabled);
            fault.textContent = "";
        },
    };
}

export function createSettings(root, actions) {
    const landscapes = Object.entries(LANDSCAPES).map(([name, { title }]) => {
        const box = html("input", {
            type: "radio",
            name: "landscape",
            value: name,
            id: `landscape-${name}`,
            onchange: () => actions.change({ landscape: name }),
        });
        return { name, box, label: html("label", { class: "chip" }, box, html("span", { text: title })) };
    });
    const start = ["x1", "x2"].map((name, i) => {
        const label = `Start, x${"₁₂"[i]}`;
        const number = numberField(name, label, (text) => actions.change({ [name]: FIELDS[name].read(name, text) }));
        number.field.id = `number-${name}`;
        return {
            name,
            number,
            row: html("label", {}, html("b", { text: `x${"₁₂"[i]} ` }), number.field, number.fault),
        };
    });
    const dialects = html(
        "select",
        { id: "dialect", onchange: () => actions.speak(dialects.value) },
        html("option", { value: "", text: "none: my own settings" }),
    );
    for (const [name, { title }] of Object.entries(DIALECTS))
        dialects.append(html("option", { value: name, text: title }));
    const parts = Object.fromEntries(
        Object.keys(TEXTS).map((name) => [name, (STOPS[name] ? slider : toggle)(name, actions)]),
    );
    const rows = (...names) => names.map((name) => parts[name].row);
    const more = html(
        "details",
        {},
        html("summary", { text: "More settings" }),
        ...rows("initial_square_avg", "clip_value", "lr_in_momentum", "nesterov"),
    );
    root.append(
        html(
            "fieldset",
            {},
            html("legend", { text: "Landscape" }),
            html("div", { class: "chips" }, ...landscapes.map(({ label }) => label)),
            ...rows("angle"),
            html(
                "div",
                { class: "pair" },
                html("span", { class: "words", text: "Start" }),
                ...start.map(({ row }) => row),
            ),
            ...rows("steps"),
        ),
        html(
            "fieldset",
            {},
            html("legend", { text: "RMSProp" }),
            html("label", { class: "field", for: "dialect" }, html("span", { text: "As in" }), dialects),
            ...rows("lr", "beta", "eps", "momentum", "centered", "bias_correction", "eps_inside_sqrt"),
            more,
        ),
    );
    const hidden = ["initial_square_avg", "clip_value", "lr_in_momentum", "nesterov"];
    let wasUsed = false;
    return {
        render(model) {
            const { state } = model;
            for (const { name, box } of landscapes) box.checked = state.landscape === name;
            for (const { name, number } of start) number.show(writeNumber(state[name]));
            dialects.value = state.dialect;
            for (const part of Object.values(parts)) part.render(model);
            const used = hidden.some((name) => state[name] && !(name === "lr_in_momentum" && !state.momentum));
            if (used && !wasUsed) more.open = true;
            wasUsed = used;
        },
    };
}

/** Who races: shown or hidden, with which rate, and the loss at the step that the page shows. */
export function createRacers(root, actions) {
    const rows = Object.entries(RACERS).map(([name, { title, rate, note }]) => {
        const box = html("input", {
            type: "checkbox",
            id: `show-${name}`,
            "aria-label": `Show ${title}`,
            onchange: () => actions.toggleRacer(name, box.checked),
        });
        const label = html(
            "label",
            { for: box.id, class: "name" },
            html("span", { class: `swatch ${name}`, "aria-hidden": "true" }),
            title,
        );
        const number =
            rate &&
            numberField(`rate_${name}`, `${rate} of ${title}`, (text) =>
                actions.setRate(name, readNumber(`rate_${name}`, text, 0, 1e6)),
            );
        if (number) number.field.id = `number-rate-${name}`;
        const loss = html("output", { class: "loss", id: `loss-${name}` });
        const settings = number
            ? html("span", { class: "rate" }, html("b", { text: `${rate} ` }), number.field, number.fault)
            : html("span", { class: "rate words", text: "as set" });
        const row = html(
            "div",
            { class: "racer-row" },
            box,
            label,
            settings,
            html("span", { class: "note words", text: note ?? "" }),
            loss,
        );
        return { name, box, number, loss, row };
    });
    const now = html("span", { class: "loss" });
    root.append(html("div", { class: "racer-row head" }, now), ...rows.map(({ row }) => row));
    return {
        render({ state, result }) {
            now.textContent = `loss after ${state.step} steps`;
            for (const { name, box, number, loss, row } of rows) {
                const { losses, lost } = result.racers[name];
                box.checked = !state.hide.includes(name);
                row.classList.toggle("off", !box.checked);
                number?.show(writeNumber(state.rates[name]));
                loss.textContent = state.step < losses.length ? say(losses[state.step]) : `lost in step ${lost}`;
            }
        },
    };
}

const ICONS = {
    first: "M6 5v14M19 5L9 12l10 7z",
    back: "M17 5L7 12l10 7z",
    play: "M7 4l13 8-13 8z",
    pause: "M8 5v14M16 5v14",
    step: "M6 5l9 7-9 7zM19 5v14",
};
const icon = (name) => {
    const holder = html("span", { class: `icon ${name}`, "aria-hidden": "true" });
    holder.innerHTML = `<svg viewBox="0 0 24 24"><path d="${ICONS[name]}"/></svg>`;
    return holder;
};

/** Play, pause, single steps, speed, and the spike. */
export function createPlayer(root, actions) {
    const button = (name, label, onclick) =>
        html(
            "button",
            { type: "button", class: "round", id: name, "aria-label": label, title: label, onclick },
            icon(name),
        );
    const play = html("button", { type: "button", id: "play", class: "main", onclick: actions.togglePlay });
    const time = html("input", {
        type: "range",
        id: "time",
        min: 0,
        "aria-label": "Step",
        oninput: () => actions.goTo(Number(time.value)),
    });
    const shown = html("output", { id: "time-text", for: "time" });
    const speed = html("select", { id: "speed", onchange: () => actions.change({ speed: Number(speed.value) }) });
    for (const each of SPEEDS) speed.append(html("option", { value: each, text: `${each} steps/s` }));
    const spike = html(
        "button",
        { type: "button", id: "spike", onclick: actions.addSpike },
        html("span", { text: "Spike the next gradient" }),
    );
    const size = html("select", {
        id: "spike-size",
        "aria-label": "Size of the spike",
        onchange: () => actions.change({ spike: Number(size.value) }),
    });
    for (const each of SPIKES) size.append(html("option", { value: each, text: `+ ${say(each)}` }));
    const clear = html("button", {
        type: "button",
        id: "clear-spikes",
        class: "quiet",
        text: "Remove spikes",
        onclick: () => actions.change({ spikes: [] }),
    });
    root.append(
        html(
            "div",
            { class: "line" },
            button("first", "To the start", () => actions.goTo(0)),
            button("back", "One step back", () => actions.goTo(-1, true)),
            play,
            button("step", "One step", () => actions.goTo(1, true)),
            time,
            shown,
        ),
        html(
            "div",
            { class: "line" },
            html("span", { class: "joined" }, spike, size),
            clear,
            html("label", { class: "speed" }, html("span", { class: "words", text: "Speed " }), speed),
        ),
    );
    return {
        render({ state, playing }) {
            play.replaceChildren(icon(playing ? "pause" : "play"), playing ? "Pause" : "Play");
            time.max = state.steps;
            time.value = state.step;
            time.style.setProperty("--filled", `${(state.step / state.steps) * 100}%`);
            time.setAttribute("aria-valuetext", `step ${state.step} of ${state.steps}`);
            shown.textContent = `${state.step} / ${state.steps}`;
            speed.value = state.speed;
            size.value = state.spike;
            clear.hidden = state.spikes.length === 0;
        },
    };
}
