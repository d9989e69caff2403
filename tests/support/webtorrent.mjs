// A WebTorrent peer.
//
// usage: webtorrent.mjs INDEX.JS PORT DHT_NODE|- secure|plain DIR TORRENT|MAGNET
//
// Checks DIR, downloads what is missing, and seeds.
const [module, port, node, mode, path, source] = process.argv.slice(2)
const { default: WebTorrent } = await import(module)
const client = new WebTorrent({
  torrentPort: Number(port),
  dhtPort: Number(port),
  dht: node === '-' ? false : { bootstrap: [node] },
  secure: mode === 'secure',
  tracker: false,
  lsd: false,
  utp: false,
  natUpnp: false,
  natPmp: false,
})
client.on('error', (error) => {
  console.error(error)
  process.exit(1)
})
const torrent = client.add(source, { path, announce: [] })
torrent.on('warning', (warning) => console.log('warning', warning))
torrent.on('wire', (wire, address) => console.log('connected', address))
torrent.on('done', () => console.log('done'))
