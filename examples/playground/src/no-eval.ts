/**
 * Keeps zod from compiling code from text, which the page's policy forbids. zod tries that out when the first schema is made, so
 * page and worker import this before everything else.
 */
import * as z from "zod";

z.config({ jitless: true });
