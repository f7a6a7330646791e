# Turns texts into tokens: trains or fetches the preset's tokenizer, then runs one job per corpus.
rule tokenizer:
    output:
        PRESET.paths.tokenizer / "tokenizer.json",
    log:
        f"{LOGS}/tokenizer.log",
    benchmark:
        f"{LOGS}/cost/tokenizer.jsonl"
    params:
        preset=REFERENCE,
        results=RUN.parent,
        settings=PRESET.tokenizer_settings(),
        source=code_of("data/texts.py", "data/tokens.py"),
    shell:
        "seerbench tokenizer --results {params.results:q} -- {params.preset:q} 2> {log:q}"


rule corpus:
    input:
        tokenizer=lambda wildcards: PRESET.corpus(wildcards.corpus).tokenizer.files,
    output:
        tokens=RUN / "corpora/{corpus}/tokens.parquet",
        card=RUN / "corpora/{corpus}/tokens.json",
    log:
        f"{LOGS}/corpus-{{corpus}}.log",
    benchmark:
        f"{LOGS}/cost/corpus-{{corpus}}.jsonl"
    params:
        preset=REFERENCE,
        results=RUN.parent,
        settings=lambda wildcards: PRESET.corpus_settings(wildcards.corpus),
        source=code_of("data/texts.py", "data/tokens.py"),
    shell:
        "seerbench corpus --results {params.results:q} -- {params.preset:q} {wildcards.corpus:q} 2> {log:q}"
