// Who may import what: kernels <- tensor <- autograd <- ladder <- bench, examples. Never the other way.

/** Workspaces in order: each may import those before it, and only through their public entry. */
const LAYERS = [
  { name: "kernels", path: "^kernels/" },
  { name: "tensor", path: "^packages/tensor/" },
  { name: "autograd", path: "^packages/autograd/" },
  { name: "ladder", path: "^packages/ladder/" },
  { name: "bench and examples", path: "^(bench|examples)/" },
];

const layerRules = LAYERS.flatMap(({ name, path }, level) => [
  {
    name: `${name}: nothing above it`,
    comment: "A layer that knows the ones above it can no longer be used, tested or replaced alone.",
    severity: "error",
    // Tests check a layer against whatever helps, so the order binds sources only.
    from: { path, pathNot: "/test/" },
    to: { path: LAYERS.slice(level + 1).map((layer) => layer.path) },
  },
  {
    name: `${name}: other packages by their public entry`,
    comment: "Internals may change without notice; what another package needs belongs in index.ts.",
    severity: "error",
    from: { path },
    to: {
      path: LAYERS.slice(0, level).map((layer) => layer.path),
      pathNot: [
        "^packages/[^/]+/src/(node/)?index\\.ts$",
        "^kernels/dist/index\\.(js|d\\.ts)$",
        "^packages/ladder/models/",
      ],
    },
  },
]);

export default {
  forbidden: [
    ...layerRules.filter((rule) => rule.to.path.length > 0),
    {
      name: "no cycles",
      comment: "Modules in a cycle load in an order that depends on who asks first.",
      severity: "error",
      from: {},
      // Types are gone when modules load, and some describe each other: a device makes tensors, a tensor has one.
      to: { circular: true, viaOnly: { dependencyTypesNot: ["type-only"] } },
    },
    {
      name: "Node only in node/ and cli/",
      comment: "Everything else runs in a browser too.",
      severity: "error",
      from: { path: "^packages/[^/]+/src/", pathNot: "/(node|cli)/" },
      to: { dependencyTypes: ["core"] },
    },
    {
      name: "browser code does not reach node/ or cli/",
      comment: "One import would pull Node's modules into every page.",
      severity: "error",
      from: { path: "^packages/[^/]+/src/", pathNot: "/(node|cli)/" },
      to: { path: "^packages/[^/]+/src/(node|cli)/" },
    },
    {
      name: "the library does not reach the command line",
      severity: "error",
      from: { path: "^packages/[^/]+/src/", pathNot: "/cli/" },
      to: { path: "/src/cli/" },
    },
    {
      name: "the model knows no method",
      comment:
        "A method is given to the decoder as functions; methods/residual-stream.ts is where they meet.",
      severity: "error",
      from: { path: "^packages/ladder/src/model/" },
      to: { path: "^packages/ladder/src/", pathNot: "^packages/ladder/src/(model|formats|[^/]+\\.ts$)" },
    },
    {
      name: "Dawn in one place",
      comment: "One module holds Dawn's instance: two of them, or a lost reference, abort the process.",
      severity: "error",
      from: {
        path: "^(packages|bench|examples)/",
        pathNot: "^(packages/tensor/(src/node|test)|bench/test)/",
      },
      to: { path: "(^|/)node_modules/webgpu/" },
    },
    {
      name: "resolvable",
      comment: "A typing mistake, or a package that package.json does not name.",
      severity: "error",
      from: {},
      to: { couldNotResolve: true, pathNot: "^@webgpu/types$" }, // types only: nothing to load
    },
    {
      name: "declared",
      comment: "Works here by luck of hoisting, and not for who installs the package.",
      severity: "error",
      from: { path: "^packages/[^/]+/src/" },
      to: { dependencyTypes: ["npm-no-pkg", "npm-unknown", "npm-dev"] },
    },
  ],
  options: {
    doNotFollow: { path: ["node_modules", "/dist/"] },
    exclude: { path: "/fixtures/" },
    tsPreCompilationDeps: true, // `import type` counts: a type from above is knowledge of above
    combinedDependencies: false, // each package names what it needs itself
    tsConfig: { fileName: "tsconfig.json" },
    enhancedResolveOptions: {
      exportsFields: ["exports"],
      conditionNames: ["source", "import", "types", "node", "default"],
    },
  },
};
