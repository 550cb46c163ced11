"""The evaluation harness that everybody uses scores an exported checkpoint, by the name of its revision."""

import json

import pytest

from tests.evaluation import lm_eval

TASK = """
task: parsers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
QUESTIONS = [
    {"prompt": "The parser", "choices": ["reader writer.", "zzz qqq.", "%%% ###."], "label": 0},
    {"prompt": "The module method", "choices": ["0000.", "value string."], "label": 0},
    {"prompt": "The corpus token", "choices": ["family probe.", "XXXXXX."], "label": 1},
    {"prompt": "The window", "choices": ["stream socket thread.", "stream", "{}[]"], "label": 2},
    {"prompt": "The index table", "choices": ["JJJJ", "digest."], "label": 1},
]


def picks(directory):
    """The choice of each question that ``transformers`` gives the highest probability."""
    import torch
    import transformers

    gpt = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    found = []
    for question in QUESTIONS:
        sums = []
        for choice in question["choices"]:
            asked = tokenizer(question["prompt"])["input_ids"]
            ids = tokenizer(f"{question['prompt']} {choice}")["input_ids"]
            assert ids[: len(asked)] == asked
            with torch.no_grad():
                logp = gpt(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logp[k - 1, ids[k]]) for k in range(len(asked), len(ids))))
        found.append(max(range(len(sums)), key=sums.__getitem__))
    return found


@pytest.mark.slow
def test_lm_eval_scores_an_export(prepared, tmp_path):
    """Its accuracy on a task of five questions is that of a few lines of ``transformers``."""
    prepared.ok("plan", "name=harness")
    prepared.ok("train", "name=harness")
    prepared.ok("export", "name=harness")
    exports = prepared.directory("harness") / "perturbed" / "export"
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (tmp_path / "parsers.yaml").write_text(TASK.format(questions=questions))
    lm_eval(
        "small/perturbed",
        ["parsers"],
        tmp_path,
        tmp_path / "out",
        options=",revision=step20",
        environment={"HF_HUB_CACHE": str(exports)},
    )
    (path,) = (tmp_path / "out").rglob("results*.json")
    result = json.loads(path.read_text())["results"]["parsers"]
    right = sum(
        pick == question["label"]
        for pick, question in zip(picks(exports / "step_00000020"), QUESTIONS, strict=True)
    )
    assert 0 < right < len(QUESTIONS)
    assert result["acc,none"] == pytest.approx(right / len(QUESTIONS))
