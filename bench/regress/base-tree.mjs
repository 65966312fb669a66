// A built checkout of the commit that a change is compared with.

import { execFileSync } from "node:child_process";
import { lstatSync, mkdirSync, mkdtempSync, readdirSync, realpathSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { SetupError } from "../../scripts/lib/steps.mjs";

/** The files that decide how fast anything runs. Changes of other files are not measured. */
const SOURCES = ["packages", "kernels", "package-lock.json", "tsconfig.base.json", "tsconfig.build.json"];

/** The last line of what a failed command printed. */
const messageOf = (error) =>
  String(error.stderr ?? error.message)
    .trim()
    .split("\n")
    .at(-1);

function git(root, ...args) {
  return execFileSync("git", args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim();
}

function commitOf(root, ref) {
  try {
    return git(root, "rev-parse", "--verify", "--quiet", `${ref}^{commit}`);
  } catch {
    return null;
  }
}

function mergeBase(root, ref) {
  try {
    return git(root, "merge-base", "HEAD", ref);
  } catch {
    return null;
  }
}

/**
 * The commit to compare the working tree with: `ref`; else HEAD if sources have uncommitted changes; else the commit where HEAD
 * left main, or on main HEAD's parent. `{ skip }` says why there is none.
 */
export function findBase(root, /** @type {string | null} */ ref = null) {
  const head = commitOf(root, "HEAD");
  if (head === null) return { skip: "this is not a git checkout" };
  if (ref !== null) {
    const commit = commitOf(root, ref);
    if (commit === null)
      throw new SetupError(`${ref} is no commit of this clone.`, "Fetch it, or give another --base.");
    return { commit };
  }
  if (git(root, "status", "--porcelain", "--", ...SOURCES) !== "") return { commit: head };
  for (const main of ["origin/main", "main"]) {
    const commit = commitOf(root, main) && mergeBase(root, main);
    if (commit && commit !== head) return { commit };
  }
  const parent = commitOf(root, "HEAD^");
  return parent === null
    ? { skip: "HEAD has no parent in this clone (one commit, or a shallow clone)" }
    : { commit: parent };
}

/** Whether the sources of the commit and of the working tree differ. */
export function differs(root, commit) {
  const untracked = git(root, "ls-files", "--others", "--exclude-standard", "--", ...SOURCES);
  return untracked !== "" || git(root, "diff", "--name-only", commit, "--", ...SOURCES) !== "";
}

/** Links the modules of the change into the base, except the workspace's packages: those are the base's own. */
function linkModules(from, to, root, tree) {
  mkdirSync(to, { recursive: true });
  for (const name of readdirSync(from)) {
    const entry = join(from, name);
    const isLink = lstatSync(entry).isSymbolicLink();
    if (name.startsWith("@") && !isLink) linkModules(entry, join(to, name), root, tree);
    else if (!isLink) symlinkSync(entry, join(to, name));
    else symlinkSync(join(tree, relative(realpathSync(root), realpathSync(entry))), join(to, name));
  }
}

/** Checks the commit out and builds it; `remove` deletes it. `{ skip }` says why it cannot be built. */
export function makeBaseTree(root, commit) {
  const tree = mkdtempSync(join(tmpdir(), "sidenet-base-"));
  const remove = () => {
    try {
      git(root, "worktree", "remove", "--force", tree);
    } catch {
      rmSync(tree, { recursive: true, force: true });
      git(root, "worktree", "prune");
    }
  };
  try {
    git(root, "worktree", "add", "--detach", "--force", tree, commit);
    linkModules(join(root, "node_modules"), join(tree, "node_modules"), root, tree);
    const run = (...args) =>
      execFileSync(process.execPath, args, { cwd: tree, stdio: ["ignore", "pipe", "pipe"] });
    run("kernels/embed.mjs");
    run(join(root, "node_modules/typescript/bin/tsc"), "-b", "tsconfig.build.json");
    return { tree, remove };
  } catch (error) {
    remove();
    return {
      skip: `${commit.slice(0, 9)} cannot be built with this checkout's modules: ${messageOf(error)}`,
    };
  }
}
