# Texts to tokens: the tokenizer and every corpus of the preset.
rule corpus:
    output:
        [PRESET.tokens(name) for name in PRESET.config["corpora"]],
        PRESET.tokenizer / "tokenizer.json",
    log:
        f"{LOGS}/corpus.log",
    benchmark:
        f"{LOGS}/cost/corpus.jsonl"
    params:
        where=WHERE,
        corpora=PRESET.config["corpora"],
        tokenizer=PRESET.config["tokenizer"],
        source=trains_with("data/texts.py", "data/tokens.py"),
    shell:
        "seerbench corpus {params.where} 2> {log}"
