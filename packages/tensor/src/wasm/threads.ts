/**
 * How threads share a dispatch, as WebAssembly functions over the words of `CONTROL`.
 *
 *     dispatch: next = 0, left = 0, state = OPEN; generation += 1; wake sleeping threads
 *               take tasks until none are left
 *               joined = state, state = 0 (closed); wait until left = joined
 *     work:     forever: wait until generation changes
 *                        if state is OPEN and compare-and-swap(state, state + 1): take tasks; left += 1
 *
 * A thread that wakes up after the dispatch was closed does nothing, so the caller never waits for a thread to wake up. Tasks are
 * parts of the output, taken one by one; which thread takes which does not change the result.
 */
import type { Callee, FunctionBuilder } from "./assembler/function.ts";
import { atomics, i32 } from "./assembler/instructions.ts";
import { ModuleBuilder } from "./assembler/module.ts";
import { ARGS, CONTROL, SCRATCH, SCRATCH_BYTES } from "./layout.ts";

const OPEN = 0x4000_0000;
const ALL = -1;
/** Reads of the generation before a thread sleeps: about 50 µs, longer than the host needs between two ops. */
const SPINS = 20_000;
/** Reads of `left` before the caller sleeps, if it may: longer than most tasks take. */
const CALLER_SPINS = 50_000;
const CALLER_NAP_NS = 200_000;
/** Parameters of a kernel: task, arguments, scratch. */
const KERNEL_TYPE = ModuleBuilder.typeOf(3);

/** `drain(scratch)`: takes and runs tasks until there are none. */
function emitDrain(m: ModuleBuilder): Callee {
  return m.function(1, (f) => {
    const [scratch] = f.params;
    const kernel = f.i32(i32.load(0, CONTROL.kernel));
    const tasks = f.i32(i32.load(0, CONTROL.tasks));
    const task = f.i32();
    f.forever((stop) => {
      f.set(task, atomics.add(0, 1, CONTROL.next));
      stop(i32.geS(task, tasks));
      f.callIndirect(kernel, KERNEL_TYPE, task, ARGS, scratch);
    });
  });
}

/** `work(thread)`: the loop of a thread, until `quit` is set. */
function emitWork(m: ModuleBuilder, drain: Callee): void {
  m.function(
    1,
    (f) => {
      const [thread] = f.params;
      const scratch = f.i32(i32.add(SCRATCH, i32.mul(thread, SCRATCH_BYTES)));
      const seen = f.i32();
      const state = f.i32();
      f.forever((stop) => {
        emitAwaitGeneration(f, seen);
        stop(i32.load(0, CONTROL.quit));
        f.set(state, atomics.load(0, CONTROL.state));
        f.if(
          i32.and(state, OPEN),
          () =>
            f.if(i32.eq(atomics.exchangeIf(0, state, i32.add(state, 1), CONTROL.state), state), () => {
              f.set(seen, atomics.load(0, CONTROL.generation)); // does not change before this thread has left
              f.call(drain, scratch);
              f.drop(atomics.add(0, 1, CONTROL.left));
              f.if(atomics.load(0, CONTROL.callerSleeps), () => f.drop(atomics.notify(0, 1, CONTROL.left)));
            }),
          () => f.set(seen, atomics.load(0, CONTROL.generation)), // the dispatch is already closed
        );
      });
    },
    "work",
  );
}

function emitAwaitGeneration(f: FunctionBuilder, seen: ReturnType<FunctionBuilder["i32"]>): void {
  const spins = f.i32();
  f.set(spins, 0);
  f.while(i32.eq(atomics.load(0, CONTROL.generation), seen), () => {
    f.set(spins, i32.add(spins, 1));
    f.if(i32.gtS(spins, SPINS), () => {
      f.drop(atomics.add(0, 1, CONTROL.sleepers));
      f.drop(atomics.wait(0, seen, -1, CONTROL.generation));
      f.drop(atomics.add(0, -1, CONTROL.sleepers));
    });
  });
}

/** `dispatch(mayWait)`: runs the dispatch of `CONTROL` on all threads; `mayWait` allows the caller to sleep. */
function emitDispatch(m: ModuleBuilder, drain: Callee): void {
  m.function(
    1,
    (f) => {
      const [mayWait] = f.params;
      const joined = f.i32();
      const left = f.i32();
      const spins = f.i32();
      f.do(
        atomics.store(0, 0, CONTROL.next),
        atomics.store(0, 0, CONTROL.left),
        atomics.store(0, OPEN, CONTROL.state),
      );
      f.drop(atomics.add(0, 1, CONTROL.generation));
      f.if(atomics.load(0, CONTROL.sleepers), () => f.drop(atomics.notify(0, ALL, CONTROL.generation)));
      f.call(drain, SCRATCH);
      f.set(joined, i32.and(atomics.and(0, 0, CONTROL.state), OPEN - 1));
      f.set(left, atomics.load(0, CONTROL.left));
      f.while(i32.ne(left, joined), () => {
        f.set(spins, i32.add(spins, 1));
        f.if(i32.and(mayWait, i32.gtS(spins, CALLER_SPINS)), () => {
          f.do(atomics.store(0, 1, CONTROL.callerSleeps));
          f.drop(atomics.wait(0, left, CALLER_NAP_NS, CONTROL.left));
          f.do(atomics.store(0, 0, CONTROL.callerSleeps));
        });
        f.set(left, atomics.load(0, CONTROL.left));
      });
    },
    "dispatch",
  );
}

/** `run()`: all tasks on the calling thread. */
function emitRun(m: ModuleBuilder): void {
  m.function(
    0,
    (f) => {
      const kernel = f.i32(i32.load(0, CONTROL.kernel));
      const tasks = f.i32(i32.load(0, CONTROL.tasks));
      f.for(0, tasks, 1, (task) => f.callIndirect(kernel, KERNEL_TYPE, task, ARGS, SCRATCH));
    },
    "run",
  );
}

/** Adds `run`, and with a shared memory `dispatch` and `work`. */
export function emitThreads(m: ModuleBuilder): void {
  emitRun(m);
  if (!m.options.shared) return;
  const drain = emitDrain(m);
  emitWork(m, drain);
  emitDispatch(m, drain);
}
