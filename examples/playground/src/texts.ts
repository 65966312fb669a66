/** The texts that come with the page: both by William Shakespeare, in the public domain. */
import plays from "../../data/shakespeare-sample.jsonl?url";
import sonnets from "../texts/sonnets.txt?url";

interface BundledText {
  readonly id: string;
  readonly title: string;
  readonly about: string;
  readonly fileName: string;
  readonly url: string;
  /** A prompt in the style of the text. */
  readonly prompt: string;
}

export const TEXTS: readonly BundledText[] = [
  {
    id: "plays",
    title: "Plays",
    about: "400 passages of Shakespeare's plays, a name before each speech",
    fileName: "plays.jsonl",
    url: plays,
    prompt: "KATHARINA:\nI will",
  },
  {
    id: "sonnets",
    title: "Sonnets",
    about: "20 of Shakespeare's sonnets, line by line",
    fileName: "sonnets.txt",
    url: sonnets,
    prompt: "Shall I compare thee",
  },
];

/** The suggested prompt for a user's own text. */
export const OWN_PROMPT = "Once upon a time";
