"""Tiny models and sets of texts, laid out as the Hugging Face hub keeps them on disk."""

import json

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WORDS = "amber basin cedar delta ember fjord grove heath inlet jetty knoll ledge marsh north orchard plain".split()
EOD = "<|endoftext|>"


def texts(count, seed):
    """Sentences that share words and nothing else."""
    generator = torch.Generator().manual_seed(seed)
    return [
        " ".join(WORDS[int(k)] for k in torch.randint(len(WORDS), (14,), generator=generator)) + "."
        for _ in range(count)
    ]


def words():
    """A byte-level tokenizer in the layout of OLMo's, offsets trimmed."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[EOD], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(texts(200, 99), trainer)
    return found


def llama(tokenizer, seed=0):
    """A Llama of two layers with random weights."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 5,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def trained(tokenizer, lines, steps=60):
    """The model of :func:`llama` after some steps on lines of text."""
    model = llama(tokenizer)
    rows = [torch.tensor([0, *tokenizer.encode(line, add_special_tokens=False).ids]) for line in lines]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = ids[torch.randint(len(ids), (32,), generator=generator)]
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def save(model, tokenizer, directory):
    """Write a model and its tokenizer."""
    model.save_pretrained(directory)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOD, eos_token=EOD)
    fast.save_pretrained(directory)


def cached(hub, name, revisions):
    """A repository in the hub's cache: ``revisions`` is revision -> function that fills a directory."""
    place = hub / f"models--{name.replace('/', '--')}"
    for number, (revision, fill) in enumerate(revisions.items(), start=1):
        commit = f"{number:040x}"
        snapshot = place / "snapshots" / commit
        snapshot.mkdir(parents=True)
        fill(snapshot)
        reference = place / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)


def data_set(directory, rows):
    """A data set's repository as its authors lay it out: what was inserted is ``train``, what was not is ``test``."""
    directory.mkdir(parents=True)
    for split, chosen in (
        ("train", [row for row in rows if row["duplicates"]]),
        ("test", [row for row in rows if not row["duplicates"]]),
    ):
        lines = [json.dumps({**row, "meta": json.dumps(row["meta"])}) for row in chosen]
        (directory / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
