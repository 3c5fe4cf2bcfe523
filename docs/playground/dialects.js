// Each framework's RMSProp as settings of ours: rmsfast.dialects, as far as the settings of this page go.
//
// A dialect says under which name it has each of our settings, with its own default, and what is fixed in it.

const COMMON = { momentum: ["momentum", 0], centered: ["centered", false] };

export const DIALECTS = {
    torch: {
        title: "PyTorch",
        takes: { lr: ["lr", 1e-2], beta: ["alpha", 0.99], eps: ["eps", 1e-8], ...COMMON },
        fixed: {},
    },
    keras: {
        title: "Keras 3",
        takes: {
            lr: ["learning_rate", 1e-3],
            beta: ["rho", 0.9],
            eps: ["epsilon", 1e-7],
            ...COMMON,
            clip_value: ["clipvalue", null],
            clip_norm: ["clipnorm", null],
        },
        fixed: { eps_inside_sqrt: true, lr_in_momentum: true, decoupled_weight_decay: true },
    },
    tf1: {
        title: "TensorFlow 1",
        takes: { lr: ["learning_rate"], beta: ["decay", 0.9], eps: ["epsilon", 1e-10], ...COMMON },
        fixed: { eps_inside_sqrt: true, lr_in_momentum: true, initial_square_avg: 1 },
    },
    optax: {
        title: "Optax",
        takes: {
            lr: ["learning_rate"],
            beta: ["decay", 0.9],
            eps: ["eps", 1e-8],
            ...COMMON,
            nesterov: ["nesterov", false],
            eps_inside_sqrt: ["eps_in_sqrt", true],
            initial_square_avg: ["initial_scale", 0],
            bias_correction: ["bias_correction", false],
        },
        fixed: { lr_in_momentum: true },
    },
    timm: {
        title: "timm",
        takes: {
            lr: ["lr", 1e-2],
            beta: ["alpha", 0.9],
            eps: ["eps", 1e-10],
            ...COMMON,
            lr_in_momentum: ["lr_in_momentum", true],
        },
        fixed: { eps_inside_sqrt: true, initial_square_avg: 1 },
    },
    sb3: {
        title: "Stable-Baselines3",
        takes: { lr: ["lr", 1e-2], beta: ["alpha", 0.99], eps: ["eps", 1e-8], ...COMMON },
        fixed: { eps_inside_sqrt: true, initial_square_avg: 1 },
    },
    mxnet: {
        title: "MXNet 1.x",
        takes: {
            lr: ["learning_rate", 1e-3],
            beta: ["gamma1", 0.9],
            eps: ["epsilon", 1e-8],
            momentum: ["gamma2", 0.9],
            centered: ["centered", false],
            clip_value: ["clip_gradient", null],
        },
        fixed: { eps_inside_sqrt: true, lr_in_momentum: true },
    },
    d2l: {
        title: "Dive into Deep Learning",
        takes: { lr: ["lr"], beta: ["gamma", 0.9], eps: ["eps", 1e-6] },
        fixed: { eps_inside_sqrt: true },
    },
};

/** Return the settings for some arguments under the framework's own names, or throw an Error. */
export function dialect(name, args = {}) {
    if (!Object.hasOwn(DIALECTS, name)) {
        throw new Error(`dialect: ${name}, expected one of ${Object.keys(DIALECTS).join(", ")}`);
    }
    const { takes, fixed } = DIALECTS[name];
    const theirs = Object.values(takes).map(([argument]) => argument);
    for (const argument of Object.keys(args)) {
        if (!theirs.includes(argument)) {
            throw new Error(`${argument}: no such argument of ${name}, expected one of ${theirs.join(", ")}`);
        }
    }
    const settings = { ...fixed };
    for (const [ours, [argument, standard]] of Object.entries(takes)) {
        settings[ours] = Object.hasOwn(args, argument) ? args[argument] : standard;
        if (settings[ours] === undefined)
            throw new Error(`${argument}: nothing, expected a number: ${name} has no default`);
    }
    if (name === "optax") settings.nesterov = settings.nesterov && settings.momentum !== 0; // which Optax ignores
    if (name === "mxnet" && !settings.centered) settings.momentum = 0; // its plain form has none
    return settings;
}

/**
 * Return the arguments with which a dialect has these settings of ours, or null if it cannot have them.
 *
 * Arguments that have the framework's default are left out.
 */
export function asDialect(name, settings, defaults) {
    const { takes } = DIALECTS[name];
    const args = {};
    for (const [ours, [argument, standard]] of Object.entries(takes)) {
        const idle = name === "mxnet" && ours === "momentum" && !settings.centered;
        if (Object.hasOwn(settings, ours) && !idle && settings[ours] !== standard) args[argument] = settings[ours];
    }
    const theirs = { ...defaults, ...dialect(name, args) };
    // Without a momentum the place of the rate does not matter. Weight decay is 0 here, so its kind does not matter either.
    const same = (key) =>
        theirs[key] === settings[key] ||
        key === "decoupled_weight_decay" ||
        (key === "lr_in_momentum" && !settings.momentum);
    return Object.keys(settings).every(same) ? args : null;
}
