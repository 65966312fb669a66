# The Python half of compare-eval.mjs.
#
#   python compare-eval.py MANIFEST.json    evaluates the manifest's tasks, and writes results.json beside it

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{sys.argv[1]}.cache"}  # the model and the data are local

import lm_eval
import torch
from lm_eval.api.metrics import mean, mean_stderr
from lm_eval.models.huggingface import HFLM

QUESTION = "Question: {{question}}\nAnswer:"
CRITIC = (
    "Question: {{question}}\nSolution:\n{% for line in solution.split('\n') %}{{loop.index}}. {{line}}\n{% endfor %}"
    "Is the solution correct or incorrect?\nAnswer:"
)
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": QUESTION,
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_bytes"}],
}
# The filters and what is ignored are those of the harness's own gsm8k.
NUMBER = {
    "output_type": "generate_until",
    "doc_to_text": QUESTION,
    "doc_to_target": "answer",
    "generation_kwargs": {"until": ["\nQuestion:"], "do_sample": False},
    "metric_list": [
        {
            "metric": "exact_match",
            "aggregation": "mean",
            "higher_is_better": True,
            "ignore_case": True,
            "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"],
        }
    ],
    "filter_list": [
        {
            "name": "strict-match",
            "filter": [
                {"function": "regex", "regex_pattern": r"#### (\-?[0-9\.\,]+)"},
                {"function": "take_first"},
            ],
        },
        {
            "name": "flexible-extract",
            "filter": [
                {"function": "regex", "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1},
                {"function": "take_first"},
            ],
        },
    ],
}


def tasks_of(manifest, tokenizer):
    """Tasks by name; `file` is the one of the rows if it has another name."""
    steps = lambda doc: [f"{i + 1}{tokenizer.eos_token}" for i in range(doc["solution"].count("\n") + 1)]
    return {
        "arc": CHOICE | {"description": manifest["prefix"]},
        "boolq": CHOICE | {"doc_to_text": "{{context}}\n" + QUESTION},
        "blimp": CHOICE | {"doc_to_text": "", "target_delimiter": ""},
        "critic": CHOICE | {"doc_to_text": CRITIC},
        "first_wrong_step": CHOICE
        | {
            "file": "critic",
            "process_docs": lambda docs: docs.filter(lambda doc: doc["first_error_step"] not in [None, -1]),
            "doc_to_text": CRITIC + " incorrect\nFirst wrong step:",
            "doc_to_choice": steps,
            "doc_to_target": "first_error_step",
        },
        "gsm8k": NUMBER | {"generation_kwargs": NUMBER["generation_kwargs"] | {"max_gen_toks": manifest["answer_tokens"]}},
        "perplexity": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": lambda doc: doc["text"].removeprefix(tokenizer.bos_token),
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    }


def evaluate(model, name, task, work):
    """The metrics, and for each row its log-likelihoods or text and its metrics."""
    task = dict(task)
    data = {"test": str(work / f"{task.pop('file', name)}.jsonl")}
    config = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": data}, "test_split": "test"} | task
    first = lambda one: one[0] if isinstance(one, (list, tuple)) else one  # of a log-likelihood and whether it is greedy
    done = lm_eval.simple_evaluate(model, tasks=[config], num_fewshot=0)
    rows = {}
    for sample in done["samples"][name]:
        row = rows.setdefault(sample["doc_id"], {"responses": [first(one[0]) for one in sample["resps"]], "metrics": {}})
        for metric in sample["metrics"]:
            row["metrics"][f"{metric},{sample['filter']}"] = sample[metric]
    return {"metrics": done["results"][name], "rows": [rows[i] for i in sorted(rows)]}


def join_filters(metrics, rows):
    """A number counts as sidenet counts it: the one after ####, which is the strict match, or else the last."""
    for row in rows:
        marked = "####" in row["responses"][0]
        row["metrics"]["exact_match,none"] = row["metrics"][f"exact_match,{'strict-match' if marked else 'flexible-extract'}"]
    right = [row["metrics"]["exact_match,none"] for row in rows]
    metrics |= {"exact_match,none": mean(right), "exact_match_stderr,none": mean_stderr(right)}


def main():
    path = Path(sys.argv[1])
    manifest = json.loads(path.read_text())
    torch.set_num_threads(1)
    options = {"device": "cpu", "dtype": "float32", "batch_size": 4}
    model = HFLM(manifest["model"], **options)
    # It puts BOS before a text by itself, whether or not the tokenizer does.
    windows = HFLM(manifest["model"], max_length=manifest["window"], add_bos_token=False, **options)
    results = {}
    for name, task in tasks_of(manifest, model.tokenizer).items():
        if task.get("file", name) in manifest["tasks"]:
            own = windows if name == "perplexity" else model
            results[name] = evaluate(own, name, task, path.parent)
    if "gsm8k" in results:
        join_filters(**results["gsm8k"])
    versions = {name: version(name) for name in ["lm_eval", "torch", "transformers"]}
    path.with_name("results.json").write_text(json.dumps({"versions": versions, "results": results}))


main()
