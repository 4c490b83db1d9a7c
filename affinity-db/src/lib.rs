//! The user affinity database of US 9,172,620: who used which object, and what to fetch ahead for him.
