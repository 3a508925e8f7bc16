// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// errKeyReplaced ends an attempt to connect; the next one has the new key.
var errKeyReplaced = errors.New("the nkey file holds another key than before; trying again with it")

// nkeyFile signs with the seed in a file, which may be replaced at any time by
// another user's or a new one: the next attempt to connect goes with that.
type nkeyFile struct {
	path string
	conn atomic.Pointer[nats.Conn]
}

// sign is called by nats.go during an attempt to connect, under the connection's
// lock and after the public key was looked up in its options.
func (k *nkeyFile) sign(nonce []byte) ([]byte, error) {
	public, signature, err := k.read(nonce)
	if err != nil {
		return nil, err
	}
	if nc := k.conn.Load(); nc != nil && nc.Opts.Nkey != public {
		nc.Opts.Nkey = public
		return nil, errKeyReplaced
	}
	return signature, nil
}

// read returns the public key, and a signature of the nonce if there is one.
func (k *nkeyFile) read(nonce []byte) (public string, signature []byte, err error) {
	b, err := os.ReadFile(k.path)
	if err != nil {
		return "", nil, fmt.Errorf("read nkey seed: %w", err)
	}
	defer clear(b)
	pair, err := nkeys.ParseDecoratedUserNKey(b)
	if err != nil {
		return "", nil, fmt.Errorf("read nkey seed %s: %w", k.path, err)
	}
	defer pair.Wipe()
	if public, err = pair.PublicKey(); err != nil {
		return "", nil, fmt.Errorf("read nkey seed %s: %w", k.path, err)
	}
	if nonce != nil {
		if signature, err = pair.Sign(nonce); err != nil {
			return "", nil, fmt.Errorf("sign with nkey seed %s: %w", k.path, err)
		}
	}
	return public, signature, nil
}
