"""See what every layer, attention block and FFN of a language model would say next, and how sure it is.

A hidden state at a hook point, times the unembedding, is a policy.

    READ   families -> hooks -> policy                        a Hugging Face model of a known family goes in
           (proofs: that a family's row is right)
    SCAN   tasks -> prompts -> rollouts -> scan -> cache      Parquet comes out
           (scan: selection says what, metrics measures it with product, tables lay it out)
    LENS   rollouts -> fit -> lens -> scan                    a fitted map a hook point is one more readout
    LOOK   cache -> view -> analysis, tokens -> plots, heatmaps -> figures -> report, app
           (small frames, one look, without torch)
    MARK   verify -> tasks -> rollouts -> evaluate            Avg@K and Pass@k
    TRAIN  tasks -> policy -> bupo -> journal (dynamics)      GRPO with a schedule of hook points
    ASK    __main__ -> options -> commands -> opening, job, sampling, evaluating, fitting, training, loading,
           show, drawing

Importing the package imports nothing; import the rooms: `from internal_policy.scans.scan import scan`.
"""
