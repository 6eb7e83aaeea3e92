"""Token stores: the schema of token shards, their writer, the reader `TokenStore`, and the check of a whole store."""

from flextok.data.tokens.files import DamagedFile, StoredShard, read_manifest, read_shard_footer
from flextok.data.tokens.schema import FORMAT, ContentHash, TokenMeta, token_dtype, token_schema, token_table
from flextok.data.tokens.store import TokenRow, TokenStore
from flextok.data.tokens.summary import summarize_tokens
from flextok.data.tokens.verify import verify_tokens
from flextok.data.tokens.writer import ShardRecord, write_token_manifest, write_token_shard

__all__ = [
    "FORMAT",
    "ContentHash",
    "DamagedFile",
    "ShardRecord",
    "StoredShard",
    "TokenMeta",
    "TokenRow",
    "TokenStore",
    "read_manifest",
    "read_shard_footer",
    "summarize_tokens",
    "token_dtype",
    "token_schema",
    "token_table",
    "verify_tokens",
    "write_token_manifest",
    "write_token_shard",
]
