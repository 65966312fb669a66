// Prints the last line of .ci/run, "N passed, N failed", from test reports and exit codes.
//
//   node scripts/test-totals.mjs CHECK_EXIT REPORT.json TEST_EXIT [REPORT.json TEST_EXIT ...]

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/**
 * Totals of one run from vitest's JSON report (null if it wrote none). A file that could not be loaded, and a run that broke
 * off or ran no test, count as one failure each.
 */
function runTotals({ report, exit }) {
  const files = report?.testResults ?? [];
  const tests = files.flatMap((file) => file.assertionResults);
  const count = (status) => tests.filter((test) => test.status === status).length;
  const broken = files.filter(
    ({ status, assertionResults }) =>
      status === "failed" && !assertionResults.some((test) => test.status === "failed"),
  );
  const passed = count("passed");
  const failed = count("failed") + broken.length;
  const silent = failed === 0 && (exit !== 0 || passed === 0);
  return { passed, failed: failed + Number(silent), skipped: tests.length - passed - count("failed") };
}

/** Totals of several runs. Failed checks count as one failure. */
export function testTotals(runs, checkExit) {
  const totals = runs.map(runTotals);
  const sum = (key) => totals.reduce((all, one) => all + one[key], 0);
  return { passed: sum("passed"), failed: sum("failed") + Number(checkExit !== 0), skipped: sum("skipped") };
}

function readReport(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    console.error(`test report: ${error.message}`);
    return null;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [checkExit, ...rest] = process.argv.slice(2);
  const runs = [];
  for (let i = 0; i < rest.length; i += 2)
    runs.push({ report: readReport(rest[i]), exit: Number(rest[i + 1]) });
  const { passed, failed, skipped } = testTotals(runs, Number(checkExit));
  if (skipped > 0) console.log(`${skipped} skipped`);
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed > 0 ? 1 : 0;
}
