"""`seerbench evaluate`: a method of your own through the protocol of a preset, up to a card of its numbers.

candidate    the method, checked as `seerbench compare` checks it
protocol     the jobs of the preset with dense attention and the method in place of the preset's arms
measure      rows of losses, look-ups and timings, saved piece by piece
beside       rows of other methods on the same windows, from a run of the same preset
card         the numbers as tables: for a terminal, in Markdown and as a page
run          all of these in order; cli.py calls it
leaderboard  all methods of published runs and yours, ranked where they were measured alike
page         pages of tables that sort and need no network
"""
