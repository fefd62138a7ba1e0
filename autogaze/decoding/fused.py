"""placeholder"""
def why_not(model): return "not built yet"
