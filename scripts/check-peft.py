# The Python half of check-peft.mjs.
#
#   python check-peft.py MANIFEST.json          for each case of the manifest: compares PEFT's logits for the adapter that sidenet
#                                               wrote with sidenet's, and writes an adapter of PEFT and its logits for sidenet
#   python check-peft.py --quantize MODEL TO    writes a checkpoint that bitsandbytes has quantized to NF4

import json
import sys
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file


def load_model(folder, quantized):
    """
    bitsandbytes loads NF4 checkpoints. Its matmul on the CPU rounds to bfloat16 (an error of 3e-3 in one layer's output), so
    its layers are replaced by float32 layers with the weights that bitsandbytes dequantizes.
    """
    if not quantized:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    import bitsandbytes

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"})
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, bitsandbytes.nn.Linear4bit):
            continue
        weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
        dense.weight.data = weight
        if layer.bias is not None:
            dense.bias.data = layer.bias.data.float()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, dense)
    return model


def relative(ours, theirs):
    return (torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)).item()


def randomize(model):
    """Draws every B: with B = 0, an adapter would change nothing."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def run(case):
    ids = torch.tensor(case["ids"])
    quantized = case.get("quantized", False)
    report = {}
    if case.get("written") is not None:
        model = peft.PeftModel.from_pretrained(load_model(case["model"], quantized), case["written"]).eval()
        expected = load_file(str(Path(case["written"]) / "logits.safetensors"))["logits"]
        report["written_here"] = relative(model(input_ids=ids).logits.float(), expected)
    if case.get("config") is not None:
        config = peft.LoraConfig(task_type="CAUSAL_LM", **case["config"])
        model = peft.get_peft_model(load_model(case["model"], quantized), config).eval()
        randomize(model)
        model.save_pretrained(case["to"])
        logits = model(input_ids=ids).logits.float().contiguous()
        save_file({"logits": logits}, str(Path(case["to"]) / "logits.safetensors"))
    return report


def quantize(model, to):
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    quantized = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )
    quantized.save_pretrained(to)


def main():
    torch.set_num_threads(1)
    if sys.argv[1] == "--quantize":
        return quantize(*sys.argv[2:])
    manifest = Path(sys.argv[1])
    results = {}
    for case in json.loads(manifest.read_text())["cases"]:
        try:
            results[case["name"]] = run(case)
        except Exception as error:  # an error in a library: report it and run the other cases
            results[case["name"]] = {"error": f"{type(error).__name__}: {error}"}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    try:
        import bitsandbytes

        versions["bitsandbytes"] = bitsandbytes.__version__
    except ImportError:
        pass
    manifest.with_name("results.json").write_text(json.dumps({"versions": versions, "results": results}))


main()
