"""State: adjacency, features, embeddings (Redis), the item index (FAISS). NumPy in, NumPy out."""
