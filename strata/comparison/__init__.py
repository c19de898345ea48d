"""Two groups of SAEs compared by seed and by document or task: which is better, and how surely?"""
